"""Memory of a training run, before anything is allocated, and whether the device has it.

Weights, gradients, moments and averages are arithmetic. What autograd keeps for the backward pass is counted by running
the loss on fake tensors (torch's FakeTensorMode: shapes, types and a device, no memory) as the run would, precision
included. All sizes are gigabytes of 1e9 bytes.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from attrs import evolve
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from mixar.assembly import System
from mixar_core.backbone import Backbone
from mixar_core.errors import UserError
from mixar_core.masking import masked_count, split_by_order
from mixar_core.model import MixAR
from mixar_core.noise import Noise
from mixar_core.training.engine import sharded_blocks

#: kinds of memory that a run holds from its first step to its last; the rest comes and goes with each step
STANDING = ("weights", "gradients", "adamw", "ema", "frozen_weights")


def training_memory(system: System, *, processes: int = 1, device_type: str = "cuda") -> dict[str, float | None]:
    """What each of `processes` needs, by kind, and their sum as `training`; None where it cannot be counted.

    Weights, gradients, AdamW's two moments and averages take 4 bytes a parameter each. Under `training.parallel: fsdp`
    every process holds its share of these, and in addition the whole weights and gradients of what it computes with:
    what is outside the blocks, and two blocks, the present one and the next. Where a step has several passes
    (`training.micro_batch`), it keeps all gradients whole between them. Activations are those of one pass, at the mask
    ratio that keeps most. Perceptual losses, and tokens kept by `training.cache: memory`, are not counted.

    Args:
        system: built with `meta=True`.
        device_type: what it runs on: attention is fused on `cuda` and may not be on `cpu`.
    """
    settings = system.recipe.training
    trained = system.parameters
    frozen = sum(p.numel() for module in _modules(system) for p in module.parameters()) - trained
    shares = processes if settings is not None and settings.parallel == "fsdp" else 1
    memory: dict[str, float | None] = {
        "weights": 4e-9 * trained / shares,
        "gradients": 4e-9 * trained / shares,
        "adamw": 8e-9 * trained / shares,
        "ema": 4e-9 * trained / shares,
        "frozen_weights": 4e-9 * frozen,
    }
    if shares > 1:
        gathered = _gathered(system.trained)
        memory["gathered_blocks"] = 8e-9 * gathered
        if settings is not None and settings.micro_batch and settings.micro_batch < settings.batch_size // processes:
            # FSDP sums gradients over the processes in the last pass alone; the share counted above is among these.
            memory["gathered_blocks"] = 4e-9 * gathered
            memory["whole_gradients"] = 4e-9 * trained * (1 - 1 / shares)
    memory["activations"] = _activations(system, processes, device_type)
    known = [value for value in memory.values() if value is not None]
    memory["training"] = sum(known) if len(known) == len(memory) else None
    return memory


def check_memory(system: System, *, device: torch.device, processes: int = 1) -> str | None:
    """Compare what a run needs with what `device`, one process's, has; None where all is well or nothing is known.

    Args:
        system: built with `meta=True`.
        processes: of the run; on a CPU, those of this machine (torchrun's LOCAL_WORLD_SIZE) share its memory.

    Returns:
        A line of warning where activations are what may not fit.

    Raises:
        UserError: what the run holds all the time surely does not fit.
    """
    capacity = device_memory(device)
    settings = system.recipe.training
    if capacity is None or settings is None:
        return None
    memory = training_memory(system, processes=processes, device_type=device.type)
    together = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if device.type == "cpu" else 1
    standing = together * sum(memory[kind] or 0.0 for kind in STANDING)
    name = f"recipe {system.recipe.name} on {device}"
    shared = f" for its {together} processes on this machine" if together > 1 else ""
    if standing > capacity:
        raise UserError(
            f"{name}: weights, gradients, optimizer and averages need {_gb(standing)}{shared}, and there are "
            f"{_gb(capacity)}; use {_fsdp(memory, settings.parallel, processes, capacity)}, or a smaller model"
        )
    total = memory["training"]
    if total is None or total * together <= capacity:
        return None
    advice = ["a smaller training.micro_batch", _fsdp(memory, settings.parallel, processes, capacity)]
    if system.model is not None and not system.recipe.backbone.activation_checkpointing:
        advice.insert(1, "backbone.activation_checkpointing: true")
    return (
        f"{name}: training probably needs {_gb(total * together)}{shared}, and there are {_gb(capacity)}; if it runs "
        f"out of memory, use {', or '.join(advice)}"
    )


def _fsdp(memory: Mapping[str, float | None], parallel: str, processes: int, capacity: float) -> str:
    """Over how many devices, one a process, what is trained must be shared to fit."""
    frozen = memory["frozen_weights"] or 0.0
    trained, least = sum(memory[kind] or 0.0 for kind in STANDING) - frozen, 2
    if parallel == "fsdp":
        trained, least = trained * processes, processes + 1
    if frozen >= capacity:
        return "a device with more memory"
    return f"training.parallel: fsdp over {max(least, math.ceil(trained / (capacity - frozen)))} or more devices"


def device_memory(device: torch.device) -> float | None:
    """What a device has in all, whoever uses it: a GPU's memory; of a CPU, the machine's or the container's."""
    if device.type == "cuda":
        return 1e-9 * torch.cuda.get_device_properties(device).total_memory
    if device.type != "cpu":
        return None
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        path = Path(limit)
        if path.is_file() and (text := path.read_text().strip()).isdigit():
            found.append(int(text))
    return 1e-9 * min(found)


def _gb(value: float) -> str:
    return f"{value:.3g} GB" if value < 1000 else f"{value:,.0f} GB"


def _modules(system: System) -> list[nn.Module]:
    """The system's modules, each once."""
    parts = [system.continuous_tokenizer, system.discrete_tokenizer, system.prior]
    trained = [system.model.trained] if system.model is not None else []
    return [part for part in (*trained, *parts) if part is not None]


def _gathered(trained: nn.Module) -> int:
    """Parameters that an FSDP process has whole at one time."""
    sizes = [sum(p.numel() for p in block.parameters()) for block in sharded_blocks(trained)]
    whole = sum(p.numel() for p in trained.parameters())
    return whole - sum(sizes) + sum(sorted(sizes)[-2:])


# ---------------------------------------------------------------- activations


def _activations(system: System, processes: int, device_type: str) -> float | None:
    """What one pass of one process keeps for its backward pass."""
    settings = system.recipe.training
    bf16, images = False, 1
    if settings is not None:
        bf16 = settings.precision == "bf16"
        images = min(settings.micro_batch or settings.batch_size, math.ceil(settings.batch_size / processes))
    system = copy.deepcopy(system)
    try:
        with _fake(device_type, bf16=bf16):
            counts = _counts(system, device_type)
            one, two = [count(1) for count in counts], counts[-1](2)
    except Exception:  # whatever a third party's part does that fake tensors do not allow; it need not fail for real
        return None
    fixed = 2 * one[-1] - two  # what does not grow with the images: autocast's copies of the weights
    return 1e-9 * (fixed + images * (max(one) - fixed))


def _counts(system: System, device: str) -> list[Callable[[int], float]]:
    """What counts the bytes kept for a number of images; for a MixAR, at the least and at the greatest mask ratio."""
    for module in _modules(system):
        _onto(module, device)
    recipe, noise = system.recipe, _Still(torch.Generator())
    if system.model is not None:
        model = system.model
        model.trained.train()
        # checkpointing saves the state of a device's random numbers, which a fake device has not
        model.backbone.config = evolve(recipe.backbone, activation_checkpointing=False)
        tokens = model.backbone.grid.tokens
        ratios = (recipe.masking.ratio_min, recipe.masking.ratio_max)
        recompute = recipe.backbone.activation_checkpointing
        return [_mixar(model, masked_count(ratio, tokens), noise, device, recompute=recompute) for ratio in ratios]
    module, size = system.trained.train(), recipe.image_size

    def loss(images: int) -> object:
        if recipe.trains == "prior":
            prior = system.prior
            assert prior is not None
            codes_BN = torch.zeros(images, prior.grid.tokens, dtype=torch.int64, device=device)
            return prior.loss(codes_BN, codes_BN[:, 0], noise=noise)
        images_B3HW = torch.zeros(images, 3, size, size, device=device)
        if recipe.trains == "continuous_tokenizer":
            continuous = system.continuous_tokenizer
            assert continuous is not None
            posterior = continuous.posterior(images_B3HW)
            return continuous.decode_raw(continuous.sample_posterior(posterior, noise)), posterior
        discrete = system.discrete_tokenizer
        assert discrete is not None
        quantized = discrete.quantize(images_B3HW)
        return discrete.decode_vectors(quantized.vectors_BEhw), quantized

    return [lambda images: kept_bytes(module, lambda: loss(images))]


def _mixar(model: MixAR, masked: int, noise: Noise, device: str, *, recompute: bool) -> Callable[[int], float]:
    backbone = model.backbone
    buffer, tokens = backbone.config.buffer, backbone.grid.tokens

    def count(images: int) -> float:
        codes_BN = torch.zeros(images, tokens, dtype=torch.int64, device=device)
        tokens_BNC = torch.zeros(images, tokens, backbone.token_dim, device=device)
        guidance = model.guidance(codes_BN)
        prefix = 0 if guidance.prefix_BPD is None else guidance.prefix_BPD.shape[1]

        def loss() -> Tensor:
            inside = model.guidance(codes_BN)
            z_BND = backbone(tokens_BNC, split_by_order(codes_BN, masked), codes_BN[:, 0], inside)
            return model.head.loss(z_BND[:, :masked], tokens_BNC[:, :masked], noise=noise)

        kept = kept_bytes(model.trained, loss)
        if not recompute:
            return kept
        largest = 0.0
        for blocks, length in (
            (backbone.encoder_blocks, prefix + buffer + tokens - masked),
            (backbone.decoder_blocks, prefix + buffer + tokens),
        ):
            inside, entering = _block(backbone, blocks, images, length, guidance.memory_BMD, device)
            kept -= len(blocks) * (inside - entering)
            largest = max(largest, inside)
        return kept + largest

    return count


def _block(
    backbone: Backbone, blocks: nn.ModuleList, images: int, length: int, memory_BMD: Tensor | None, device: str
) -> tuple[float, float]:
    """Bytes that one block of a list keeps, and those of its input, which checkpointing keeps too."""
    width = backbone.width if blocks is backbone.decoder_blocks else backbone.config.width
    x_BTD = torch.zeros(images, length, width, device=device, requires_grad=True)
    memory = None if memory_BMD is None else memory_BMD.detach()
    return kept_bytes(blocks[0], lambda: blocks[0](x_BTD, memory)), float(x_BTD.numel() * x_BTD.element_size())


def kept_bytes(module: nn.Module, run: Callable[[], object]) -> float:
    """Bytes that autograd keeps for a backward pass through `run`, the module's own parameters not counted."""
    own = {tensor.untyped_storage()._cdata for tensor in module.parameters()}
    kept: dict[int, tuple[Tensor, int]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = tensor, storage.nbytes()  # holding the tensor keeps the number its own
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()  # held until all is counted
    del result
    return float(sum(size for _, size in kept.values()))


# ---------------------------------------------------------------- fake tensors


class _Still(Noise):
    """Noise whose scalars are no draws: a fake tensor has no value to ask for."""

    def scalar(self, *, name: str = "") -> float:
        return 0.5


class _FusedAttention(TorchFunctionMode):
    """Attention as a GPU has it: without one, torch would choose the kernel that keeps the whole attention map."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention or args[0].device.type != "cuda" or len(args) > 3:
            return func(*args, **kwargs)
        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else args[0].dtype
        q, k, v = (tensor.to(dtype) for tensor in args)
        fused = torch.ops.aten._scaled_dot_product_efficient_attention
        return fused(q, k, v, None, True, kwargs.get("dropout_p", 0.0))[0]


@contextmanager
def _fake(device_type: str, *, bf16: bool) -> Iterator[None]:
    """New tensors are fake, and operators run under autocast as they would on a device of this type.

    torch.autocast itself refuses `cuda` where there is none.
    """
    before = torch.is_autocast_enabled(device_type), torch.get_autocast_dtype(device_type)
    torch.set_autocast_enabled(device_type, bf16)
    torch.set_autocast_dtype(device_type, torch.bfloat16 if bf16 else before[1])
    torch.autocast_increment_nesting()
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), _FusedAttention():
            yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled(device_type, before[0])
        torch.set_autocast_dtype(device_type, before[1])


def _onto(module: nn.Module, device: str) -> None:
    """Replace parameters and buffers without memory by fake ones on `device`."""
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            fake = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
            setattr(part, name, nn.Parameter(fake, requires_grad=parameter.requires_grad))
        for name, buffer in part.named_buffers(recurse=False):
            setattr(part, name, torch.empty(buffer.shape, dtype=buffer.dtype, device=device))
