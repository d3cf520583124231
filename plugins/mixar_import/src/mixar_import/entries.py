"""State dicts in a file's content: entries found, and names freed of what trainers and torch wrap them in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

from mixar_core.errors import UserError
from mixar_import.importers import Importer

#: entries, and modules around a model, in the order in which they are tried
ENTRIES = ("model", "state_dict", "model_state_dict", "net", "network", "params", "weights",
           "ema", "model_ema", "ema_model", "params_ema", "online_model")  # fmt: skip
#: what torch's wrappers put into names, wherever they wrap: DDP, compile, FSDP, checkpointing, Fabric
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
#: numbers that averages keep beside the weights
COUNTERS = {"n_averaged", "initted", "step", "num_updates", "decay"}
#: how many dicts of a file are looked into: a pickle may hold itself, or one dict a thousand times
_MOST = 10_000


@frozen(eq=False)
class StateDict:
    """Tensors by their published names, and what to say of how they were found."""

    tensors: Mapping[str, Tensor]
    remarks: tuple[str, ...] = ()


def flatten(content: Any, *, where: str) -> tuple[dict[str, Tensor], list[str]]:
    """A file's tensors by name, entries and names joined by dots; and names of what lies beside tensors and is none.

    Optimizers' states are passed over.

    Raises:
        UserError: there are no tensors, says what there is; or two are called alike.
    """
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{where}: holds no tensors by name, but is {_kind(content)}")
    found: dict[str, Tensor] = {}
    others: list[str] = []
    complaints: list[str] = []
    for path, values in islice(_dicts(content), _MOST):
        tensors = {name: v for name, v in values.items() if isinstance(name, str) and isinstance(v, Tensor)}
        for name, tensor in tensors.items():
            if found.setdefault(path + name, tensor) is not tensor:
                raise UserError(f"{where}: two tensors are called {path}{name}, counting names of entries")
        for name, value in values.items():
            if name not in tensors and not _is_dict(name, value):
                at = f"{path[:-1]}: " if path else ""
                complaints.append(f"{at}entry {str(name)[:60]!r} is {_kind(value)}, not a tensor by name")
                others.extend([f"{path}{name}"] if tensors else [])
    if not found:
        raise UserError(f"{where}: {complaints[0] if complaints else 'holds no tensors by name'}")
    return {name: tensor.detach() for name, tensor in found.items()}, others


def _dicts(
    values: Mapping[Any, Any], path: str = "", above: tuple[int, ...] = ()
) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """A dict, those in it, and those in them, each with the beginning of its names; none inside itself."""
    yield path, values
    inside = (*above, id(values))
    for name, value in values.items():
        if _is_dict(name, value) and not name.startswith(("optimizer", "optim_")) and id(value) not in inside:
            yield from _dicts(value, f"{path}{name}.", inside)


def _is_dict(name: object, value: object) -> bool:
    return isinstance(name, str) and isinstance(value, Mapping) and bool(value)


def state_dicts(
    tensors: Mapping[str, Tensor], importer: Importer, *, entry: str | None = None, raw: bool = False
) -> list[StateDict]:
    """What may be the state dict wanted, the likeliest first; `entry` and `raw` as for `import_weights`.

    Raises:
        UserError: there is no such entry, no averaged weights beside others, or the likeliest is not stored as weights.
    """
    averaged, last = importer.averaged_entry, importer.entry or ""
    names, taken = unwrap(tensors, kept=(averaged, last) if averaged else ())
    if entry is None and averaged is not None:
        if _under(names, averaged) or _under(names, last):
            entry = last if raw else averaged
        elif raw:
            raise UserError(f"--raw: this file has one set of weights, no entries {averaged} and {last}")
    inside = names if entry is None else _under(names, entry) or _under(tensors, entry)
    if not inside:
        hint = "; --raw takes the others" if entry == averaged else ""
        raise UserError(f"has no entry {entry}{hint}; it has {_beginnings(names)}")
    found = []
    for state, within, also_taken in _candidates(inside, (last, *ENTRIES)):
        at = ".".join(part for part in (entry, *within) if part)
        others = {name: tensor for name, tensor in names.items() if not name.startswith(f"{at}.")}
        remarks = []
        if at and others:
            remarks.append(f"weights of {at}; the file also has {_beginnings(others)}: --entry NAME takes another")
        parts = [*taken, *also_taken]
        if last in parts:  # once is as the authors write it
            parts.remove(last)
        if parts:
            remarks.append(f"taken from the tensors' names: {', '.join(dict.fromkeys(parts))}")
        found.append(StateDict(state, tuple(remarks)))
    check_stored(found[0].tensors)
    return found


def unwrap(tensors: Mapping[str, Tensor], *, kept: Collection[str] = ()) -> tuple[dict[str, Tensor], list[str]]:
    """Names without wrappers' parts, averages' counters, and whatever all of them begin with; and what that was.

    Where two names would become one, all stay as they are.

    Args:
        kept: beginnings that stay even where all names share them.
    """
    taken: list[str] = []
    names: dict[tuple[str, ...], Tensor] = {}
    for name, tensor in tensors.items():
        parts = tuple(part for part in name.split(".") if part not in WRAPPERS)
        taken += [part for part in name.split(".") if part in WRAPPERS]
        if len(parts) == 1 and parts[0] in COUNTERS and tensor.numel() == 1:
            taken += parts
        elif parts in names or not parts:
            return dict(tensors), []
        else:
            names[parts] = tensor
    while len(firsts := {parts[0] for parts in names}) == 1 and all(len(parts) > 1 for parts in names):
        if firsts & set(kept):
            break
        taken += firsts
        names = {parts[1:]: tensor for parts, tensor in names.items()}
    return {".".join(parts): tensor for parts, tensor in names.items()}, taken


def _candidates(
    tensors: Mapping[str, Tensor], order: tuple[str, ...]
) -> Iterator[tuple[dict[str, Tensor], tuple[str, ...], list[str]]]:
    """Groups of names that begin alike, then all: each with its beginning, and what else was taken away."""
    names, taken = unwrap(tensors)
    for entry in dict.fromkeys(order):
        if inside := _under(names, entry):
            for state, within, also_taken in _candidates(inside, order):
                yield state, (entry, *within), [*taken, *also_taken]
    yield names, (), taken


def _under(tensors: Mapping[str, Tensor], entry: str) -> dict[str, Tensor]:
    """Those whose names begin with an entry's, without it."""
    start = f"{entry}."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def _beginnings(tensors: Mapping[str, Tensor]) -> str:
    """What names begin with: `model (12), ema (12)`."""
    counts = Counter(name.partition(".")[0] for name in tensors)
    listed = [f"{name} ({count})" for name, count in counts.most_common(6)]
    return ", ".join([*listed, "..."] if len(counts) > len(listed) else listed)


def check_stored(tensors: Mapping[str, Tensor]) -> None:
    """Raise UserError unless all tensors are as weights are: dense, real, and all of their values in the file."""
    for name, value in tensors.items():
        if value.layout != torch.strided or value.is_quantized or value.is_complex():
            raise UserError(f"tensor {name} is stored in a way that weights are not ({value.layout}, {value.dtype})")
        if value.device.type == "cpu" and value.untyped_storage().nbytes() < value.numel() * value.element_size():
            raise UserError(f"tensor {name} claims {value.numel()} values, more than the file holds for it")


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise UserError unless every value is a number; names the tensors that hold others."""
    bad = [
        name
        for name, tensor in tensors.items()
        if tensor.is_floating_point()
        and not (tensor.float() if tensor.element_size() == 1 else tensor).isfinite().all()  # not asked of float8
    ]
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise UserError(f"NaN or infinite values in {', '.join(bad[:3])}{more}: such weights are of no use")


def _kind(value: object) -> str:
    return "an empty dict" if isinstance(value, Mapping) and not value else f"of type {type(value).__name__}"
