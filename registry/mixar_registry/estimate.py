"""What a recipe costs, before anything is allocated: parameters, tokens, FLOP, memory. Counted on the meta device.

A FLOP is one multiplication or one addition: a dense layer of m inputs and n outputs costs 2 m n a token, attention
over T tokens of width D 4 T^2 D, a convolution likewise by its definition. Only these are counted, by running the
modules on the meta device and summing over their operators; norms, activations and softmax are left out, as is usual.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from mixar_core.masking import masked_after_step, masked_count
from mixar_core.model import MixAR
from mixar_core.noise import Noise
from mixar_registry.assembly import System

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
        memory_gb: of one training process without sharding: weights, gradients, AdamW's two moments and EMA at 4 bytes
            a parameter each, frozen weights, activations of one micro-batch; and of sampling one image.
    """

    parameters: int
    parts: tuple[PartCost, ...]
    tokens: dict[str, int] = field(factory=dict)
    training_gflop: dict[str, float | None] = field(factory=dict)
    sampling_gflop: dict[str, float | None] = field(factory=dict)
    memory_gb: dict[str, float | None] = field(factory=dict)


def estimate(system: System) -> Estimate:
    """Estimate of a system built with `meta=True`."""
    if system.model is not None:
        tokens, training, sampling = _mixar(system, system.model)
    else:
        tokens, (training, sampling) = {}, _single(system)
    parts = _parts(system)
    for costs in (training, sampling):
        known = [value for value in costs.values() if value is not None]
        costs["total"] = sum(known) if len(known) == len(costs) else None
    return Estimate(system.parameters, parts, tokens, training, sampling, _memory(system, parts))


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
    """What `run` costs; None where one of its operators has no meta kernel."""
    try:
        with torch.no_grad(), _Counter() as counter:
            run()
    except (NotImplementedError, RuntimeError):
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


# ---------------------------------------------------------------- a MixAR


def _mixar(system: System, model: MixAR) -> tuple[dict[str, int], dict[str, float | None], dict[str, float | None]]:
    recipe, settings, noise = system.recipe, system.recipe.sampling, Noise.seeded(0)
    backbone, head, tokens = model.backbone, model.head, model.backbone.grid.tokens
    labels_B = torch.zeros(1, dtype=torch.int64, device=META)
    codes_BN = torch.zeros(1, tokens, dtype=torch.int64, device=META)
    latents_BNC = torch.zeros(1, tokens, backbone.token_dim, device=META)
    guidance = model.guidance(codes_BN)
    prefix = 0 if guidance.prefix_BPD is None else guidance.prefix_BPD.shape[1]
    memory = 0 if guidance.memory_BMD is None else guidance.memory_BMD.shape[1]
    masked = masked_count(recipe.masking.mean_ratio(), tokens)

    def pass_gflop(masked: int) -> float:
        return backbone_flop(model, visible=tokens - masked, prefix=prefix, memory=memory) / 1e9

    z_BKD, target_BKC = torch.zeros(1, masked, backbone.width, device=META), latents_BNC[:, :masked]
    repeats = FORWARDS_CHECKPOINTED if recipe.backbone.activation_checkpointing else FORWARDS_A_STEP
    images = torch.zeros(1, 3, recipe.image_size, recipe.image_size, device=META)
    training = {
        "backbone": repeats * pass_gflop(masked),
        "head": _times(FORWARDS_A_STEP, _gflop(lambda: head.loss(z_BKD, target_BKC, noise=noise))),
        "continuous_tokenizer": _gflop(lambda: model.continuous_tokenizer.posterior(images)),
    }

    guided = settings.cfg != 1.0 and recipe.num_classes > 0
    copies = 2 if guided else 1
    before, total = tokens, 0.0
    for after in masked_after_step(tokens, settings.steps):
        total += pass_gflop(before) * copies if after < before else 0.0
        before = after
    z_RD = torch.zeros(1, backbone.width, device=META)

    def draw_token(steps: int | None) -> Tensor:
        return head.sample(z_RD, z_uncond_RD=z_RD if guided else None, cfg=settings.cfg, steps=steps, noise=noise)

    head_steps = settings.head_steps or getattr(getattr(head, "config", None), "sampling_steps", None)
    grid = model.continuous_tokenizer.grid
    latents_BChw = torch.zeros(1, model.continuous_tokenizer.latent_channels, grid.height, grid.width, device=META)
    sampling = {
        "backbone": total,
        "head": _times(tokens, _gflop_of_steps(draw_token, head_steps)),
        "continuous_tokenizer": _gflop(lambda: model.continuous_tokenizer.decode(latents_BChw)),
    }

    discrete, prior = model.discrete_tokenizer, model.prior
    if model.injector.needs_codes and discrete is not None:
        training["discrete_tokenizer"] = _gflop(lambda: discrete.encode(images))
    if model.injector.needs_codes and prior is not None:
        mixed = recipe.ti_mix.lambda_at(1.0) < 1.0
        share = 1.0 - recipe.ti_mix.begin if mixed and recipe.ti_mix.lambda_at(0.0) == 1.0 else float(mixed)
        hidden_BN = torch.ones(1, tokens, dtype=torch.bool, device=META)
        training["prior"] = _times(
            share, _gflop(lambda: prior.predict(codes_BN, hidden_BN, labels_B, noise=noise)) if mixed else 0.0
        )
        sampling["prior"] = _prior_sampling(system)
    counts = {
        "training_masked": masked,
        "training_encoder": prefix + recipe.backbone.buffer + tokens - masked,
        "training_decoder": prefix + recipe.backbone.buffer + tokens,
        "sampling_encoder_first": prefix + recipe.backbone.buffer,
        "sampling_encoder_last": prefix + recipe.backbone.buffer + tokens - _last_count(tokens, settings.steps),
        "sampling_decoder": prefix + recipe.backbone.buffer + tokens,
    }
    return counts, training, sampling


def _last_count(tokens: int, steps: int) -> int:
    return ([tokens, *masked_after_step(tokens, steps)])[-2]


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


def _single(system: System) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """Training and, of a prior, sampling; of a tokenizer, encoding and decoding. Perceptual losses are not counted."""
    size, key = system.recipe.image_size, system.recipe.trains
    images = torch.zeros(1, 3, size, size, device=META)
    discrete = system.discrete_tokenizer
    if key == "prior":
        prior = system.prior
        assert prior is not None and discrete is not None
        codes_BN = torch.zeros(1, prior.grid.tokens, dtype=torch.int64, device=META)
        labels_B = torch.zeros(1, dtype=torch.int64, device=META)
        loss = _gflop(lambda: prior.loss(codes_BN, labels_B, noise=Noise.seeded(0)))
        return (
            {"prior": _times(FORWARDS_A_STEP, loss), "discrete_tokenizer": _gflop(lambda: discrete.encode(images))},
            {"prior": _prior_sampling(system), "discrete_tokenizer": _gflop(lambda: discrete.decode(codes_BN))},
        )
    tokenizer = discrete if key == "discrete_tokenizer" else system.continuous_tokenizer
    assert tokenizer is not None
    both = _gflop(lambda: tokenizer.decode(tokenizer.encode(images)))
    return {key: _times(FORWARDS_A_STEP, both)}, {key: both}


def _prior_sampling(system: System) -> float | None:
    prior, settings = system.prior, system.recipe.sampling
    assert prior is not None
    labels_B = torch.zeros(1, dtype=torch.int64, device=META)

    def draw(steps: int | None) -> Tensor:
        return prior.sample(labels_B, noise=Noise.seeded(0), steps=steps, cfg=settings.prior_cfg)

    return _gflop_of_steps(draw, settings.prior_steps or getattr(getattr(prior, "config", None), "steps", None))


# ---------------------------------------------------------------- parameters and memory


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


def _memory(system: System, parts: tuple[PartCost, ...]) -> dict[str, float | None]:
    """Gigabytes (1e9 bytes)."""
    trained = sum(part.parameters for part in parts if part.trained)
    frozen = sum(part.parameters for part in parts if not part.trained)
    memory: dict[str, float | None] = {
        "weights": 4e-9 * trained,
        "gradients": 4e-9 * trained,
        "adamw": 8e-9 * trained,
        "ema": 4e-9 * trained,
        "frozen_weights": 4e-9 * frozen,
    }
    settings = system.recipe.training
    micro_batch = (settings.micro_batch or settings.batch_size) if settings else 1
    width = 2 if settings and settings.precision == "bf16" else 4
    values = _activations(system)
    memory["activations"] = None if values is None else 1e-9 * values * width * micro_batch
    known = [value for value in memory.values() if value is not None]
    memory["training"] = sum(known) if len(known) == len(memory) else None
    peak = _largest_tensor(system)
    # in the widest layer of a tokenizer's decoder about four tensors of that size live at once
    memory["sampling"] = None if peak is None else 4e-9 * (trained + frozen + 4 * peak)
    return memory


def _activations(system: System) -> float | None:
    """Numbers kept for the backward pass of one image.

    A transformer block of width D and MLP ratio r keeps (8 + 2r) D numbers a token: the inputs of two norms, of the
    qkv, output and two MLP layers, of the GELU, and q, k, v. Fused attention keeps no map. A cross-attention block
    keeps 4 D more a token and 2 D a memory token. With activation checkpointing a block keeps its input, and one block
    at a time all of this. What else is trained (head, tokenizers, priors) is run on the meta device, and what autograd
    keeps is summed, attention maps included.
    """
    model, recipe, noise = system.model, system.recipe, Noise.seeded(0)
    images = torch.zeros(1, 3, recipe.image_size, recipe.image_size, device=META)
    if model is None:
        if recipe.trains == "prior":
            prior = system.prior
            assert prior is not None
            codes_BN = torch.zeros(1, prior.grid.tokens, dtype=torch.int64, device=META)
            labels_B = torch.zeros(1, dtype=torch.int64, device=META)
            return _kept(prior, lambda: prior.loss(codes_BN, labels_B, noise=noise))
        if recipe.trains == "continuous_tokenizer":
            continuous = system.continuous_tokenizer
            assert continuous is not None
            return _kept(continuous, lambda: continuous.decode(continuous.encode(images)))
        discrete = system.discrete_tokenizer
        assert discrete is not None
        return _kept(discrete, lambda: discrete.decode_vectors(discrete.quantize(images).vectors_BEhw))

    tokens, config = model.backbone.grid.tokens, recipe.backbone
    masked = masked_count(recipe.masking.mean_ratio(), tokens)
    guidance = model.guidance(torch.zeros(1, tokens, dtype=torch.int64, device=META))
    prefix = 0 if guidance.prefix_BPD is None else guidance.prefix_BPD.shape[1]
    memory = 0 if guidance.memory_BMD is None else guidance.memory_BMD.shape[1]
    kept = 0.0
    for length, width, depth in (
        (prefix + config.buffer + tokens - masked, config.width, config.depth),
        (prefix + config.buffer + tokens, model.backbone.width, config.decoder_depth or config.depth),
    ):
        block = (8 + 2 * config.mlp_ratio) * width * length
        if memory:
            block += 4 * width * length + 2 * width * memory
        kept += depth * width * length + block if config.activation_checkpointing else depth * block
    z_BKD = torch.zeros(1, masked, model.backbone.width, device=META, requires_grad=True)
    target_BKC = torch.zeros(1, masked, model.backbone.token_dim, device=META)
    head = _kept(model.head, lambda: model.head.loss(z_BKD, target_BKC, noise=noise))
    return None if head is None else kept + head


def _kept(module: nn.Module, run: Callable[[], object]) -> float | None:
    """Numbers that autograd keeps for a backward pass through `run`, parameters not counted."""
    own = {id(parameter) for parameter in module.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        base = tensor if tensor._base is None else tensor._base
        if id(base) not in own:
            kept[id(base)] = base  # holding it keeps its id its own
        return tensor

    training = module.training
    try:
        module.train()
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            run()
    except (NotImplementedError, RuntimeError):
        return None
    finally:
        module.train(training)
    return float(sum(tensor.numel() for tensor in kept.values()))


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
