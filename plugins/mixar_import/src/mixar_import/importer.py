"""Importers: a file that someone else published, translated into a recipe and tensors under our names."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

from attrs import frozen
from torch import Tensor

from mixar_core.errors import UserError
from mixar_core.tokenizer import Tokenizer


@frozen(eq=False)
class Published:
    """What an importer is given.

    Args:
        tensors: the file's state dict, under the names it was published with. Large files are mapped into memory, so
            looking at shapes costs nothing.
        tokenizer: on torch's meta device, the one that the user named; None where the kind needs none.
        statistics: `mean` and `std` of the latents, one value a channel; None where none were given.
    """

    tensors: Mapping[str, Tensor]
    tokenizer: Tokenizer | None = None
    statistics: Mapping[str, Tensor] | None = None


@frozen(eq=False)
class Translation:
    """What an importer makes of it.

    Args:
        recipe: plain values of a recipe, as in YAML; `extends` may name a shipped one. The tokenizer's key, if there is
            one, is filled in by the caller.
        tensors: under our names, all that the recipe's trained module has and nothing else. Whether that is so, the
            caller checks, tensor by tensor.
        remarks: sentences for the user: what was dropped, and what was assumed.
    """

    recipe: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    remarks: tuple[str, ...] = ()


class Importer(ABC):
    """Translates one kind of published file. Registered as a Part (kind `importer`) and built as `Class(config)`.

    The config's fields are what tensors do not tell, such as numbers of heads. An importer reads sizes off the tensors
    and renames them; files are opened, checked and written by who calls it.
    """

    #: the entry that holds the state dict, where the file has others beside it
    entry: ClassVar[str | None] = None
    #: the same for averaged weights, where the file has both
    averaged_entry: ClassVar[str | None] = None
    #: the recipe's key of the tokenizer whose folder the user must name
    tokenizer_key: ClassVar[Literal["continuous_tokenizer", "discrete_tokenizer"] | None] = None
    #: whether statistics of the latents may be given
    takes_statistics: ClassVar[bool] = False

    @abstractmethod
    def translate(self, published: Published) -> Translation:
        """Recipe and tensors of a published file.

        Raises:
            UserError: tensors that tell the sizes are missing, or a size can be told by nothing.
        """


def shapes_of(tensors: Mapping[str, Tensor], dimensions: Mapping[str, int], *, what: str) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors that tell a model's sizes, by name.

    Args:
        dimensions: how many dimensions each must have.
        what: what the file should be, for the message.

    Raises:
        UserError: lists those that are not there, or are of other dimensions.
    """
    missing = [name for name in dimensions if name not in tensors]
    if missing:
        raise UserError(f"is no {what}: it has no tensor {', '.join(missing)}")
    odd = [f"{name} has {tensors[name].ndim}, not {n}" for name, n in dimensions.items() if tensors[name].ndim != n]
    if odd:
        raise UserError(f"is no {what}: dimensions of tensors: {', '.join(odd)}")
    return {name: tuple(tensors[name].shape) for name in dimensions}


def count(names: Iterable[str], prefix: str) -> int:
    """How many different numbers follow `prefix` in these names: the length of a published module list."""
    pattern = re.compile(rf"{re.escape(prefix)}(\d+)\.")
    return len({found[1] for name in names if (found := pattern.match(name))})


def square_root(number: int, *, what: str) -> int:
    """The side of a square.

    Raises:
        UserError: it is none.
    """
    side = round(number**0.5)
    if side < 1 or side * side != number:
        raise UserError(f"has {number} {what}, which is no square")
    return side


def told_heads(heads: int | None, published: int | None, width: int, *, setting: str = "heads") -> int:
    """Attention heads: as set, or else as the published model of these sizes has them. Tensors do not tell.

    Raises:
        UserError: neither tells, or they do not divide the width.
    """
    known = heads or published
    if known is None:
        raise UserError(
            f"is of no published size (width {width}), and tensors do not tell its attention heads: give --set "
            f"{setting}=N"
        )
    if width % known:
        raise UserError(f"has width {width}, which is no multiple of {setting}={known}")
    return known
