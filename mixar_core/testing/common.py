"""What the contracts of all kinds share: telling assertions, repeatability, weights to a file and back, devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import safetensors.torch
import torch
from torch import Tensor, nn

from mixar_core import meta
from mixar_core.noise import Noise
from mixar_core.testing.report import expect as expect
from mixar_core.testing.report import measured as measured
from mixar_core.testing.report import remark
from mixar_core.testing.report import topic as topic
from mixar_core.tokenizer import Tokenizer
from mixar_core.types import NO_CLASS, Grid

M = TypeVar("M", bound=nn.Module)

BATCH = 3
#: Where the inputs' seeds start: away from those of the noise, or a component could draw what it was given.
_INPUT_SEED = 1000


def expect_error(kind: type[Exception], access: Callable[[], object], what: str) -> None:
    """`access` raises an error of this kind."""
    try:
        access()
    except kind:
        return
    expect(False, f"{what} raises no {kind.__name__}")


def expect_tensor(
    name: str,
    tensor: object,
    shape: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    within: tuple[float, float] | None = None,
) -> None:
    """A tensor of this shape and dtype, finite, in the closed range `within`."""
    expect(isinstance(tensor, Tensor), f"{name} is a {type(tensor).__name__}, not a tensor")
    assert isinstance(tensor, Tensor)
    expect(tensor.shape == tuple(shape), f"{name} has shape {tuple(tensor.shape)}, not {tuple(shape)}")
    expect(tensor.dtype == dtype, f"{name} is {tensor.dtype}, not {dtype}")
    expect(bool(tensor.isfinite().all()), f"{name} holds a value that is not finite")
    if within is not None:
        low, high = tensor.min().item(), tensor.max().item()
        expect(within[0] <= low and high <= within[1], f"{name} reaches from {low} to {high}, outside {within}")


def expect_equal(message: str, first: Mapping[str, Tensor], second: Mapping[str, Tensor], *, rtol: float = 0.0) -> None:
    """Equal tensors under equal names, to the bit unless `rtol` is given (relative to the largest value)."""
    for name, a in first.items():
        expect(near(a, second[name], rtol=rtol), f"{name}: {message}")


def near(a: Tensor, b: Tensor, *, rtol: float = 0.0) -> bool:
    """Whether two tensors are equal, those of real numbers up to `rtol` of the largest value."""
    if a.shape != b.shape or not rtol or not a.is_floating_point():
        return torch.equal(a, b)
    return bool((a - b).abs().max() <= rtol * a.abs().max().clamp(min=1.0))


def expect_alone(found: Mapping[str, Tensor], alone: Mapping[str, Tensor], *, rtol: float = 1e-4) -> None:
    """The first image of a batch comes out as it does `alone`."""
    topic("batch independence")
    first = {name: found[name][:1] for name in alone}
    expect_equal("an image depends on what shares its batch", first, alone, rtol=rtol)


@contextmanager
def taking_pairs() -> Iterator[None]:
    """Expect that an `image_size` of (height, width) is no wrong type."""
    try:
        yield
    except TypeError as error:
        squares = f"image_size (height, width): {error}; if squares are all it knows, set squares_only"
        raise AssertionError(squares) from error


@contextmanager
def unchanged(**tensors: Tensor | None) -> Iterator[None]:
    """Expect that what happens inside leaves these tensors as they are (where there are values: not on `meta`)."""
    given = {name: tensor.detach() for name, tensor in tensors.items() if tensor is not None and not tensor.is_meta}
    before = {name: tensor.clone() for name, tensor in given.items()}
    yield
    for name, tensor in given.items():
        expect(torch.equal(tensor, before[name]), f"the argument {name} was changed in place")


def normal(*shape: int, device: str = "cpu", seed: int = 0) -> Tensor:
    """Standard normal inputs, the same on every device."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(_INPUT_SEED + seed)).to(device)


def images_of(tokenizer: Tokenizer, device: str = "cpu") -> Tensor:
    """Images (BATCH, 3, H, W) in [-1, 1]."""
    pixels = Grid.of_pixels(tokenizer.image_size)
    return normal(BATCH, 3, pixels.height, pixels.width, device=device).clamp(-1.0, 1.0)


def codes_of(codebook_size: int, tokens: int, device: str = "cpu") -> Tensor:
    """Codes (BATCH, tokens)."""
    generator = torch.Generator().manual_seed(_INPUT_SEED)
    return torch.randint(codebook_size, (BATCH, tokens), generator=generator).to(device)


def labels_of(num_classes: int, device: str = "cpu") -> Tensor:
    """Labels (BATCH,), the last of them "no class", as all are where there are none."""
    labels_B = torch.full((BATCH,), NO_CLASS)
    if num_classes:
        labels_B[:-1] = torch.arange(BATCH - 1) % num_classes
    return labels_B.to(device)


def shares(*, seed: int = 0) -> list[tuple[slice, Noise]]:
    """Rows of a batch and their noise, as two processes have them: all but the last, and the last."""
    return [
        (slice(first, until), Noise(torch.Generator().manual_seed(seed), first=first, total=BATCH))
        for first, until in ((0, BATCH - 1), (BATCH - 1, BATCH))
    ]


def build(make: Callable[[], M], *, seed: int = 0) -> M:
    """A component in evaluation mode, its weights drawn from this seed, none of them all zero."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = make()
        for parameter in module.parameters():
            if parameter.requires_grad and not parameter.any():  # what starts at zero would hide what lies behind it
                nn.init.normal_(parameter, std=0.1)
    return module.eval()


def check_module(
    make: Callable[[], M],
    exercise: Callable[[M, str], Mapping[str, Tensor]],
    *,
    on_meta: bool = True,
    autocast: bool = True,
) -> tuple[M, Mapping[str, Tensor]]:
    """What every component that is a network must keep; returns one in evaluation mode, and what came out of it.

    It repeats itself, draws nothing from torch's global generator, has all it has learned in its state dict (which
    safetensors can hold), registers no tokenizer as its submodule, runs under bf16 autocast, and where its weights are:
    also on the `meta` device, where no shape can depend on a value, unless it says `meta_safe = False`; and on a GPU if
    there is one.

    Args:
        exercise: runs it on a device with inputs of its own making, always the same; what came out, by name.
    """
    module = build(make)
    topic("its submodules")
    if not isinstance(module, Tokenizer):
        inner = next((name for name, child in module.named_modules() if isinstance(child, Tokenizer)), None)
        expect(inner is None, f"the tokenizer is registered as its submodule {inner}; its weights would be saved twice")

    with torch.no_grad():
        topic("random numbers")
        before = torch.get_rng_state()
        first = exercise(module, "cpu")
        untouched = torch.equal(before, torch.get_rng_state())
        expect(untouched, "random numbers come from torch's global generator, not `noise`")

        topic("repeatable")
        again = measured(f"all its calls once, with {BATCH} images", lambda: exercise(module, "cpu"))
        expect_equal("two calls with equal inputs and noise differ", first, again)

        topic("state dict")
        saved = safetensors.torch.save({name: tensor.contiguous() for name, tensor in module.state_dict().items()})
        other = build(make, seed=1)
        other.load_state_dict(safetensors.torch.load(saved))
        expect_equal("a second component with the same state dict differs", first, exercise(other, "cpu"))

        if autocast:
            topic("under bf16 autocast")
            with torch.autocast("cpu", torch.bfloat16):
                for name, tensor in exercise(module, "cpu").items():
                    expect_tensor(f"{name} under autocast", tensor, first[name].shape, dtype=tensor.dtype)

        if on_meta and getattr(module, "meta_safe", True):
            topic("on meta, without values")
            empty = meta.on_meta(make, safe=meta.meta_safe(module)).eval()
            _check_moved(first, _on_meta(exercise, empty), "meta")
        elif on_meta:
            remark("on meta, without values", "not checked: it says `meta_safe = False`")
        if torch.cuda.is_available():
            topic("on cuda")
            _check_moved(first, exercise(other.to("cuda"), "cuda"), "cuda")
        else:
            remark("on cuda", "not checked: there is none here")
        topic("shapes and ranges")
    return module, first


def _check_moved(first: Mapping[str, Tensor], moved: Mapping[str, Tensor], device: str) -> None:
    """What comes out on another device lies there, in the same shape and dtype."""
    for name, tensor in moved.items():
        expect(tensor.device.type == device, f"{name} lies on {tensor.device}, not on `{device}`")
        same = (tensor.shape, tensor.dtype) == (first[name].shape, first[name].dtype)
        expect(same, f"{name} has another shape or dtype on `{device}`")


def _on_meta(exercise: Callable[[M, str], Mapping[str, Tensor]], empty: M) -> Mapping[str, Tensor]:
    try:
        return exercise(empty, "meta")
    except RuntimeError as error:
        kind = NotImplementedError if isinstance(error, NotImplementedError) else RuntimeError
        raise kind(
            f"it does not run on `meta`, where recipes are checked without values: {error}; no shape and no branch may "
            "depend on a tensor's value. A part that cannot do without, such as a layer of torch that reads its mask, "
            "says `meta_safe = False`, and keeps this contract; recipes find it by themselves, but count no FLOP then"
        ) from error


def check_gradients(module: nn.Module, loss: Tensor, *inputs: Tensor) -> None:
    """The loss gives every trained weight, and these inputs, a finite gradient, and not only zeros."""
    topic("gradients")
    expect(loss.requires_grad, "the loss cannot be differentiated")
    module.zero_grad()
    loss.backward()
    trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    given = {f"input {index}": tensor for index, tensor in enumerate(inputs)}
    for name, tensor in {**trained, **given}.items():
        expect(tensor.grad is not None, f"{name} gets no gradient")
        assert tensor.grad is not None
        expect(bool(tensor.grad.isfinite().all()), f"the gradient of {name} is not finite")
        expect(name in trained or bool(tensor.grad.any()), f"the gradient of {name} is zero")
    some = any(parameter.grad is not None and bool(parameter.grad.any()) for parameter in trained.values())
    expect(some or not trained, "all gradients are zero")
    module.zero_grad()
