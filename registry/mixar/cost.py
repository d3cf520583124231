"""What a recipe costs, before anything is allocated: parameters, tokens, FLOP, memory. Counted on the meta device.

A FLOP is one multiplication or one addition: a dense layer of m inputs and n outputs costs 2 m n a token, attention
over T tokens of width D 4 T^2 D, a convolution likewise by its definition. Only these are counted, by running the
modules on the meta device and summing over their operators; norms, activations and softmax are left out, as is usual.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from itertools import pairwise
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from mixar.assembly import System
from mixar.memory import training_memory
from mixar_core.errors import UserError
from mixar_core.masking import masked_after_step, masked_count
from mixar_core.model import MixAR
from mixar_core.noise import Noise

META = torch.device("meta")
#: a backward pass costs two forward passes; recomputing activations costs one more
FORWARDS_A_STEP, FORWARDS_CHECKPOINTED = 3, 4


@frozen
class PartCost:
    """One part: its type, its parameters, and whether they are trained."""

    part: str
    type: str
    parameters: int
    trained: bool


@frozen
class Estimate:
    """What `mixar recipe check` prints. GFLOP are per image; None where a part cannot run on the meta device.

    Args:
        tokens: through encoder and decoder in one forward pass: in training at the mean mask ratio, in sampling at the
            first and at the last step.
        training_gflop, sampling_gflop: by part, what runs for one image; `total` is their sum.
        memory_gb: of one training process, see `training_memory`; and of sampling one image.
    """

    parameters: int
    parts: tuple[PartCost, ...]
    tokens: dict[str, int] = field(factory=dict)
    training_gflop: dict[str, float | None] = field(factory=dict)
    sampling_gflop: dict[str, float | None] = field(factory=dict)
    memory_gb: dict[str, float | None] = field(factory=dict)


def estimate(system: System, *, processes: int = 1) -> Estimate:
    """Estimate of a system built with `meta=True`; memory is that of one of `processes` that share its training."""
    parts = _parts(system)
    if system.model is not None:
        tokens, sampling = _tokens(system, system.model), _mixar_sampling(system, system.model)
    else:
        tokens, sampling = {}, _single_sampling(system)
    memory = training_memory(system, processes=processes)
    memory["sampling"] = _sampling_memory(system, parts)
    training = _training(system)
    return Estimate(system.parameters, parts, tokens, _with_total(training), _with_total(sampling), memory)


def training_flop_per_image(system: System) -> float | None:
    """Model FLOP of one image in a training step: forward and backward, activations that are recomputed counted once.

    What the frozen parts compute counts where it is computed at every step: tokenizers not where `training.cache` keeps
    tokens. The prior of TI-Mix counts by the share of the run in which it is asked. None where something cannot be
    counted.

    Args:
        system: built with `meta=True`.
    """
    costs, settings = _training(system, recomputed=False), system.recipe.training
    if settings is not None and settings.cache != "none":
        costs = {part: cost for part, cost in costs.items() if part == system.recipe.trains or "tokenizer" not in part}
    total = _with_total(costs)["total"]
    return None if total is None else 1e9 * total


def _with_total(costs: Mapping[str, float | None]) -> dict[str, float | None]:
    return {**costs, "total": _sum(costs.values())}


def _sum(values: Collection[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


class _Counter(TorchDispatchMode):
    """Sums FLOP over operators and remembers the largest tensor; a tenth of torch's own counter's overhead."""

    def __init__(self) -> None:
        super().__init__()
        self.flop = 0
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flop += formula(*args, **(kwargs or {}), out_val=out)
        if isinstance(out, Tensor):
            self.largest = max(self.largest, out.numel())
        return out


def _count(run: Callable[[], object]) -> _Counter | None:
    """What `run` costs; None where it cannot run on the meta device."""
    try:
        with torch.no_grad(), _Counter() as counter:
            run()
    except Exception:  # no meta kernel, no data to draw from, or whatever a part raises that looks at values
        return None
    return counter


def _gflop(run: Callable[[], object]) -> float | None:
    counter = _count(run)
    return None if counter is None else counter.flop / 1e9


def _gflop_of_steps(run: Callable[[int | None], object], steps: int | None) -> float | None:
    """GFLOP of a sampler. They are affine in its steps, so where `steps` is known two short runs tell."""
    if steps is None or steps <= 2:
        return _gflop(lambda: run(steps))
    one, two = _gflop(lambda: run(1)), _gflop(lambda: run(2))
    return None if one is None or two is None else one + (two - one) * (steps - 1)


def _times(factor: float, gflop: float | None) -> float | None:
    return None if gflop is None else factor * gflop


def _training(system: System, *, recomputed: bool = True) -> dict[str, float | None]:
    if system.model is not None:
        return _mixar_training(system, system.model, recomputed=recomputed)
    return _single_training(system)


# ---------------------------------------------------------------- a MixAR


@frozen
class _Lengths:
    """Tokens in front of a MixAR's sequence, and attended to beside it."""

    prefix: int
    memory: int


def _lengths(model: MixAR) -> _Lengths | None:
    """None where the injector cannot run on the meta device.

    Raises:
        UserError: see MixAR.guidance.
    """
    codes_BN = torch.zeros(1, model.backbone.grid.tokens, dtype=torch.int64, device=META)
    try:
        guidance = model.guidance(codes_BN)
    except UserError:  # it opens other doors than it announced
        raise
    except Exception:  # see _count
        return None
    return _Lengths(
        prefix=0 if guidance.prefix_BPD is None else guidance.prefix_BPD.shape[1],
        memory=0 if guidance.memory_BMD is None else guidance.memory_BMD.shape[1],
    )


def _masked(system: System, model: MixAR) -> int:
    """Tokens masked in training at the mean ratio."""
    return masked_count(system.recipe.masking.mean_ratio(), model.backbone.grid.tokens)


def _tokens(system: System, model: MixAR) -> dict[str, int]:
    lengths, masked, tokens = _lengths(model), _masked(system, model), model.backbone.grid.tokens
    if lengths is None:
        return {}
    front = lengths.prefix + system.recipe.backbone.buffer
    last = ([tokens, *masked_after_step(tokens, system.recipe.sampling.steps)])[-2]
    return {
        "training_masked": masked,
        "training_encoder": front + tokens - masked,
        "training_decoder": front + tokens,
        "sampling_encoder_first": front,
        "sampling_encoder_last": front + tokens - last,
        "sampling_decoder": front + tokens,
    }


def _mixar_training(system: System, model: MixAR, *, recomputed: bool) -> dict[str, float | None]:
    recipe, noise, backbone, lengths = system.recipe, Noise.seeded(0), model.backbone, _lengths(model)
    tokens, masked = backbone.grid.tokens, _masked(system, model)
    labels_B = torch.zeros(1, dtype=torch.int64, device=META)
    codes_BN = torch.zeros(1, tokens, dtype=torch.int64, device=META)
    z_BKD = torch.zeros(1, masked, backbone.width, device=META)
    target_BKC = torch.zeros(1, masked, backbone.token_dim, device=META)
    images = torch.zeros(1, 3, recipe.image_size, recipe.image_size, device=META)
    checkpointed = recomputed and recipe.backbone.activation_checkpointing
    forwards = FORWARDS_CHECKPOINTED if checkpointed else FORWARDS_A_STEP
    costs = {
        "backbone": _times(forwards, _backbone_gflop(model, lengths, visible=tokens - masked)),
        "head": _times(FORWARDS_A_STEP, _gflop(lambda: model.head.loss(z_BKD, target_BKC, noise=noise))),
        "continuous_tokenizer": _gflop(lambda: model.continuous_tokenizer.posterior(images)),
    }
    discrete, prior = model.discrete_tokenizer, model.prior
    if model.injector.needs_codes and discrete is not None:
        costs["discrete_tokenizer"] = _gflop(lambda: discrete.encode(images))
    if model.injector.needs_codes and prior is not None:
        mixed = recipe.ti_mix.lambda_at(1.0) < 1.0
        share = 1.0 - recipe.ti_mix.begin if mixed and recipe.ti_mix.lambda_at(0.0) == 1.0 else float(mixed)
        hidden_BN = torch.ones(1, tokens, dtype=torch.bool, device=META)
        asked = _gflop(lambda: prior.predict(codes_BN, hidden_BN, labels_B, noise=noise)) if mixed else 0.0
        costs["prior"] = _times(share, asked)
    return costs


def _mixar_sampling(system: System, model: MixAR) -> dict[str, float | None]:
    recipe, settings, noise, lengths = system.recipe, system.recipe.sampling, Noise.seeded(0), _lengths(model)
    backbone, head, tokens = model.backbone, model.head, model.backbone.grid.tokens
    guided = settings.cfg != 1.0 and recipe.num_classes > 0
    counts = [tokens, *masked_after_step(tokens, settings.steps)]
    passes = [
        _backbone_gflop(model, lengths, visible=tokens - before) for before, after in pairwise(counts) if after < before
    ]
    z_RD = torch.zeros(1, backbone.width, device=META)

    def draw_token(steps: int | None) -> Tensor:
        return head.sample(z_RD, z_uncond_RD=z_RD if guided else None, cfg=settings.cfg, steps=steps, noise=noise)

    head_steps = settings.head_steps or getattr(getattr(head, "config", None), "sampling_steps", None)
    grid = model.continuous_tokenizer.grid
    latents_BChw = torch.zeros(1, model.continuous_tokenizer.latent_channels, grid.height, grid.width, device=META)
    costs = {
        "backbone": _times(2 if guided else 1, _sum(passes)),
        "head": _times(tokens, _gflop_of_steps(draw_token, head_steps)),
        "continuous_tokenizer": _gflop(lambda: model.continuous_tokenizer.decode(latents_BChw)),
    }
    if model.injector.needs_codes and model.prior is not None:
        costs["prior"] = _prior_sampling(system)
    return costs


def _backbone_gflop(model: MixAR, lengths: _Lengths | None, *, visible: int) -> float | None:
    if lengths is None:
        return None
    return backbone_flop(model, visible=visible, prefix=lengths.prefix, memory=lengths.memory) / 1e9


def backbone_flop(model: MixAR, *, visible: int, prefix: int = 0, memory: int = 0) -> float:
    """One pass of the backbone over one image of which `visible` tokens are known.

    Over T tokens, a block of width D and MLP ratio r costs 2 (4 + 2r) D^2 T for its dense layers and 4 T^2 D for its
    attention; cross-attention to M tokens 4 D^2 T + 4 D^2 M and 4 T M D.
    """
    backbone, config = model.backbone, model.backbone.config
    total = 2.0 * visible * backbone.token_dim * config.width  # tokens in
    encoded = prefix + config.buffer + visible
    total += 2.0 * encoded * config.width * backbone.width  # encoder to decoder
    for length, width, depth in (
        (encoded, config.width, config.depth),
        (prefix + config.buffer + backbone.grid.tokens, backbone.width, config.decoder_depth or config.depth),
    ):
        block = 2.0 * (4 + 2 * config.mlp_ratio) * width**2 * length + 4.0 * length**2 * width
        if memory:
            block += 4.0 * width**2 * length + 4.0 * width * config.width * memory + 4.0 * length * memory * width
        total += depth * block
    return total


# ---------------------------------------------------------------- a tokenizer or a prior


def _single_training(system: System) -> dict[str, float | None]:
    """Perceptual losses are not counted."""
    key, discrete = system.recipe.trains, system.discrete_tokenizer
    if key != "prior":
        return {key: _times(FORWARDS_A_STEP, _reconstruction(system))}
    size, prior = system.recipe.image_size, system.prior
    assert prior is not None and discrete is not None
    images = torch.zeros(1, 3, size, size, device=META)
    codes_BN = torch.zeros(1, prior.grid.tokens, dtype=torch.int64, device=META)
    loss = _gflop(lambda: prior.loss(codes_BN, codes_BN[:, 0], noise=Noise.seeded(0)))
    return {"prior": _times(FORWARDS_A_STEP, loss), "discrete_tokenizer": _gflop(lambda: discrete.encode(images))}


def _single_sampling(system: System) -> dict[str, float | None]:
    """Of a tokenizer, encoding and decoding."""
    key, discrete = system.recipe.trains, system.discrete_tokenizer
    if key != "prior":
        return {key: _reconstruction(system)}
    assert discrete is not None
    codes_BN = torch.zeros(1, discrete.grid.tokens, dtype=torch.int64, device=META)
    return {"prior": _prior_sampling(system), "discrete_tokenizer": _gflop(lambda: discrete.decode(codes_BN))}


def _reconstruction(system: System) -> float | None:
    size, is_discrete = system.recipe.image_size, system.recipe.trains == "discrete_tokenizer"
    tokenizer = system.discrete_tokenizer if is_discrete else system.continuous_tokenizer
    assert tokenizer is not None
    images = torch.zeros(1, 3, size, size, device=META)
    return _gflop(lambda: tokenizer.decode(tokenizer.encode(images)))


def _prior_sampling(system: System) -> float | None:
    prior, settings = system.prior, system.recipe.sampling
    assert prior is not None
    labels_B = torch.zeros(1, dtype=torch.int64, device=META)

    def draw(steps: int | None) -> Tensor:
        return prior.sample(labels_B, noise=Noise.seeded(0), steps=steps, cfg=settings.prior_cfg)

    return _gflop_of_steps(draw, settings.prior_steps or getattr(getattr(prior, "config", None), "steps", None))


# ---------------------------------------------------------------- parameters and sampling's memory


def _parts(system: System) -> tuple[PartCost, ...]:
    recipe, found = system.recipe, []

    def add(key: str, module: nn.Module | None, trained: bool) -> None:
        if module is not None:
            choice = getattr(recipe, key)
            parameters = sum(parameter.numel() for parameter in module.parameters())
            found.append(PartCost(key, getattr(choice, "type", "mar"), parameters, trained))

    if system.model is not None:
        for key, module in system.model.trained.items():
            add(key, module, True)
    for key in ("continuous_tokenizer", "discrete_tokenizer", "prior"):
        add(key, getattr(system, key), key == recipe.trains)
    return tuple(found)


def _sampling_memory(system: System, parts: tuple[PartCost, ...]) -> float | None:
    """Gigabytes (1e9 bytes) for one image."""
    peak = _largest_tensor(system)
    # in the widest layer of a tokenizer's decoder about four tensors of that size live at once
    return None if peak is None else 4e-9 * (sum(part.parameters for part in parts) + 4 * peak)


def _largest_tensor(system: System) -> int | None:
    """Numbers in the largest tensor of decoding one image."""
    if system.model is not None or system.recipe.trains == "continuous_tokenizer":
        continuous = system.continuous_tokenizer
        assert continuous is not None
        grid = continuous.grid
        latents = torch.zeros(1, continuous.latent_channels, grid.height, grid.width, device=META)
        counter = _count(lambda: continuous.decode(latents))
    else:
        discrete = system.discrete_tokenizer
        assert discrete is not None
        codes_BN = torch.zeros(1, discrete.grid.tokens, dtype=torch.int64, device=META)
        counter = _count(lambda: discrete.decode(codes_BN))
    return None if counter is None else counter.largest
