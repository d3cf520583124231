"""Memory of a training run, before anything is allocated, and whether the device has it.

Weights, gradients, moments and averages are arithmetic. What autograd keeps for the backward pass is counted where it
keeps it, on the meta device, and is an estimate: see `training_memory`. All sizes are gigabytes of 1e9 bytes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mixar.assembly import System
from mixar.cache import needed_tokenizers
from mixar.recipe import Recipe
from mixar.text import one_line
from mixar_core.blocks import sharded_blocks
from mixar_core.data.tokens import FrozenTokenizers
from mixar_core.errors import UserError
from mixar_core.masking import split_by_order
from mixar_core.noise import Noise
from mixar_core.tokenizer import ContinuousTokenizer
from mixar_core.types import DrawnCodes, Grid, ImageBatch, Z

#: kinds of memory that a run holds from its first step to its last; the rest comes and goes with each step
STANDING = ("weights", "gradients", "adamw", "ema", "frozen_weights")
#: what is kept under bf16, of what float32 keeps: dense layers and convolutions keep half, norms all. Counted under
#: autocast: 0.58 to 0.64 for the shipped transformers, 0.82 for tokenizers with group norms
BF16_SHARE = {"mixar": 0.63, "prior": 0.6, "continuous_tokenizer": 0.82, "discrete_tokenizer": 0.82}
#: a number, or a text that says why there is none
Figure = float | str


def total(figures: Mapping[str, Figure]) -> Figure:
    """The sum, or which are not known."""
    unknown = [key for key, value in figures.items() if isinstance(value, str)]
    if unknown:
        return f"not known, for want of: {', '.join(unknown)}"
    return sum(value for value in figures.values() if not isinstance(value, str))


def figure(count: Callable[[], float]) -> Figure:
    """What is counted on the meta device, or a text that says why it cannot be."""
    try:
        return count()
    except Exception as error:  # no meta kernel, no data to draw from, or whatever a part raises that looks at values
        return f"cannot be counted without values: {error if isinstance(error, UserError) else one_line(error)}"


def training_memory(system: System, *, processes: int = 1, images: int | None = None) -> dict[str, Figure]:
    """What each of `processes` needs, by kind, and their sum as `training`.

    Weights, gradients, AdamW's two moments and averages take 4 bytes a parameter each; a discriminator has no average,
    and is one figure. Under `training.parallel: fsdp`
    every process holds its share of these, and in addition the whole weights and gradients of what it computes with:
    what is outside the blocks, and two blocks, the present one and the next. Where a step has several passes
    (`training.micro_batch`), it keeps all gradients whole between them.

    Activations are those of one pass, at the mask ratio that keeps most: what autograd keeps of one image, attention
    fused (no map of it is kept), times the images. Where the backbone recomputes them, those of an average block are
    added. Under bf16 they are BF16_SHARE of that, and 2 bytes for each parameter. What `training.cache: memory` keeps
    is counted where it is known how many `images` there are to train on. Perceptual losses are not counted.

    Args:
        system: built with `meta=True`.
    """
    settings, module, trained = system.recipe.training, system.trained, system.parameters
    parts = (module, system.continuous_tokenizer, system.discrete_tokenizer, system.prior, system.conditioner)
    everything = {p: p.numel() for part in parts if part is not None for p in part.parameters()}
    averages = settings is None or settings.ema_decay is not None
    shares = processes if settings is not None and settings.parallel == "fsdp" else 1
    memory: dict[str, Figure] = {
        kind: size * 1e-9 * trained / shares
        for kind, size in {"weights": 4, "gradients": 4, "adamw": 8, "ema": 4 * averages}.items()
    }
    if system.discriminator is not None:
        memory["discriminator"] = 16e-9 * sum(p.numel() for p in system.discriminator.parameters())
    memory["frozen_weights"] = 4e-9 * (sum(everything.values()) - trained)
    if shares > 1:
        blocks = sorted(sum(p.numel() for p in block.parameters()) for block in sharded_blocks(module))
        gathered = trained - sum(blocks[:-2])
        memory["gathered_blocks"] = 8e-9 * gathered
        if settings is not None and settings.micro_batch and settings.micro_batch < settings.batch_size // processes:
            # FSDP sums gradients over the processes in the last pass alone; the share counted above is among these.
            memory["gathered_blocks"] = 4e-9 * gathered
            memory["whole_gradients"] = 4e-9 * trained * (1 - 1 / shares)
    memory["activations"] = figure(lambda: _activations(system, processes))
    if images is not None and settings is not None and settings.cache == "memory":
        memory["cache"] = figure(lambda: 1e-9 * images * kept_bytes(system))
    memory["training"] = total(memory)
    return memory


def kept_bytes(system: System) -> int:
    """What `training.cache: memory` keeps of an image: its pixels, or what frozen tokenizers make of it; its label."""
    recipe, pixels = system.recipe, Grid.of_pixels(system.recipe.image_size)
    images = ImageBatch(torch.zeros(1, 3, pixels.height, pixels.width, device="meta"), codes_of(1)[0])
    if any(key.endswith("tokenizer") for key in recipe.trained_parts):
        return images.images_B3HW.numel() + images.labels_B.nbytes
    frozen = FrozenTokenizers(*needed_tokenizers(system))
    views = 1 + bool(recipe.training and recipe.training.flip)
    return views * sum(tensor.nbytes for tensor in frozen.encode(images).tensors())


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
    memory = training_memory(system, processes=processes)
    together = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if device.type == "cpu" else 1
    frozen, standing = float(memory["frozen_weights"]), sum(float(memory[kind]) for kind in STANDING)
    standing += float(memory.get("discriminator", 0.0))
    name = f"recipe {system.recipe.name} on {device}"
    shared = f" for its {together} processes on this machine" if together > 1 else ""
    fsdp = "a device with more memory"
    if system.discriminator is None and system.recipe.aligned_to is None:  # neither is sharded
        fsdp = _fsdp(standing - frozen, frozen, settings.parallel, processes, capacity)
    if together * standing > capacity:
        raise UserError(
            f"{name}: weights, gradients, optimizer and averages need {_gb(together * standing)}{shared}, and there "
            f"are {_gb(capacity)}; use {fsdp}, or a smaller model"
        )
    needed = memory["training"]
    if isinstance(needed, str) or needed * together <= capacity:
        return None
    advice = ["a smaller training.micro_batch", fsdp]
    if system.model is not None and not checkpoints_activations(system.recipe):
        advice.insert(1, "backbone.activation_checkpointing: true")
    return (
        f"{name}: training probably needs {_gb(needed * together)}{shared}, and there are {_gb(capacity)}; if it runs "
        f"out of memory, use {', or '.join(advice)}"
    )


def _fsdp(trained: float, frozen: float, parallel: str, processes: int, capacity: float) -> str:
    """Over how many devices, one a process, what is trained must be shared to fit."""
    least = 2
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


def codes_of(tokens: int) -> Tensor:
    """Codes (1, tokens) on the meta device."""
    return torch.zeros(1, tokens, dtype=torch.int64, device="meta")


def beside_codes(system: System, continuous: ContinuousTokenizer) -> ContinuousTokenizer:
    """The continuous tokenizer of one image with codes, where the system has some, on the meta device."""
    drawn = drawn_codes(system)
    return continuous.beside(None if drawn is None else drawn.codes_BN)


def drawn_codes(system: System) -> DrawnCodes | None:
    """Codes of one image as a prior gives them, on the meta device."""
    discrete = system.discrete_tokenizer
    return None if discrete is None else DrawnCodes(codes_of(discrete.layout.tokens))


# ---------------------------------------------------------------- activations


def masked_tokens(system: System, ratio: float) -> int:
    """Tokens that a MixAR's backbone predicts in a training step at this mask ratio."""
    assert system.model is not None
    backbone = system.model.backbone
    return backbone.split(codes_of(backbone.layout.tokens), ratio).masked_BK.shape[1]


def checkpoints_activations(recipe: Recipe) -> bool:
    """Whether the backbone recomputes activations in the backward pass."""
    return recipe.backbone is not None and getattr(recipe.backbone.config, "activation_checkpointing", False)


def trained_passes(system: System, masked: int = 0) -> dict[str, Callable[[], object]]:
    """What one image goes through where it trains a part, forward, on the meta device; by part.

    Args:
        masked: tokens of a MixAR's backbone that are not known.
    """
    recipe, model, noise = system.recipe, system.model, Noise.seeded(0)
    continuous, discrete, prior = system.continuous_tokenizer, system.discrete_tokenizer, system.prior
    pixels = Grid.of_pixels(recipe.image_size)
    images_B3HW = torch.zeros(1, 3, pixels.height, pixels.width, device="meta")

    passes: dict[str, Callable[[], object]] = {}
    if model is not None:
        backbone = model.backbone
        codes_BN = codes_of(backbone.layout.tokens)
        tokens_BNC = torch.zeros(1, backbone.layout.tokens, backbone.token_dim, device="meta")
        split = split_by_order(codes_BN, masked) if backbone.masks else backbone.split(codes_BN, 1.0)
        z_BKD = torch.zeros(*split.masked_BK.shape, backbone.width, device="meta")
        z = Z(z_BKD, split.masked_BK, tokens_BNC=tokens_BNC, known_BN=~split.masked_BN)

        def asked() -> Tensor | Z:
            said: Tensor | Z = backbone(
                tokens_BNC, split, model.condition(codes_BN[:, 0]), model.guidance(drawn_codes(system))
            )
            return said

        def head_loss(z: Z = z) -> Tensor:
            return model.head.loss(z, tokens_BNC[:, : z.positions_BK.shape[1]], noise=noise)

        passes |= {"backbone": asked, "head": head_loss}
        if model.head.denoises:  # it calls the backbone
            passes |= {"backbone": lambda: head_loss(cast(Z, asked())), "head": lambda: None}
    if "prior" in recipe.trained_parts and prior is not None:
        codes_1N = codes_of(prior.layout.tokens)
        passes["prior"] = lambda: prior.loss(codes_1N, system.condition(codes_of(1)[0]), noise=noise)
    if "continuous_tokenizer" in recipe.trained_parts and continuous is not None:
        placed = beside_codes(system, continuous)
        passes["continuous_tokenizer"] = lambda: placed.decode_raw(placed.posterior(images_B3HW).mean_BChw)
    if "discrete_tokenizer" in recipe.trained_parts and discrete is not None:
        passes["discrete_tokenizer"] = lambda: discrete.decode_vectors(discrete.quantize(images_B3HW).vectors_BEhw)
    if (discriminator := system.discriminator) is not None:
        # of images, of reconstructions, and of these for the tokenizer's sake
        passes["discriminator"] = lambda: [discriminator(images_B3HW + 0.0) for _ in range(3)]
    return passes


def _activations(system: System, processes: int) -> float:
    """What one pass of one process keeps for its backward pass."""
    recipe, settings, model = system.recipe, system.recipe.training, system.model
    if model is None:
        kept = _kept(system)
    else:
        ratios = {recipe.masking.ratio_min, recipe.masking.ratio_max}
        kept, masked = max((_kept(system, m), m) for m in {masked_tokens(system, r) for r in ratios})
        if checkpoints_activations(recipe):
            blocks = len(list(model.backbone.blocks()))
            kept += (_kept(system, masked, training=False) - kept) / blocks  # nothing is recomputed out of training
    images = 1
    if settings is not None:
        images = min(settings.micro_batch or settings.batch_size, math.ceil(settings.batch_size / processes))
        if settings.precision == "bf16":
            return 1e-9 * (images * kept * BF16_SHARE[recipe.trains] + 2 * system.parameters)
    return 1e-9 * images * kept


def _kept(system: System, masked: int = 0, *, training: bool = True) -> float:
    """Bytes that autograd keeps of one image for a backward pass, the parameters not counted."""
    modules = [module for module in (system.trained, system.discriminator) if module is not None]
    own = {id(s): s for module in modules for s in (parameter.untyped_storage() for parameter in module.parameters())}
    kept: dict[int, Any] = {}  # by identity: storages without memory have no address

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[id(storage)] = storage
        return tensor

    system.trained.train(training)
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with torch.enable_grad(), _FusedAttention(), hooks:
        done = [run() for run in trained_passes(system, masked).values()]  # held until all is counted
    system.trained.train()
    del done
    return float(sum(storage.nbytes() for key, storage in kept.items() if key not in own))


class _FusedAttention(TorchFunctionMode):
    """Attention that keeps no map, as a GPU's does; on the meta device torch would choose the kernel that keeps it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        if func is F.scaled_dot_product_attention and len(args) == 3:
            return torch.ops.aten._scaled_dot_product_flash_attention(*args)[0]
        return func(*args, **(kwargs or {}))
