"""What a recipe costs, before anything is allocated: parameters, tokens, FLOP, memory. Counted on the meta device.

FLOP are what `torch.utils.flop_counter` counts: one multiplication or one addition each, of dense layers, convolutions
and attention; norms, activations and softmax are left out, as is usual. A backward pass counts as two forward passes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from attrs import frozen
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.flop_counter import FlopCounterMode

from mixar.assembly import System
from mixar.memory import (
    Figure,
    beside_codes,
    checkpoints_activations,
    codes_of,
    drawn_codes,
    figure,
    masked_tokens,
    total,
    trained_passes,
    training_memory,
)
from mixar.recipe import TRAINABLE
from mixar_core.errors import UserError
from mixar_core.head import ContinuousHead, parts_of
from mixar_core.model import MixAR, SamplingConfig
from mixar_core.noise import Noise
from mixar_core.plan import PlannedStep
from mixar_core.products import packable
from mixar_core.types import Grid, Step, Z

META = torch.device("meta")
#: a step in forward passes: forward and backward, and forward again where activations are recomputed
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
    """What `mixar recipe check` prints. A figure that cannot be had is a text that says why.

    Args:
        tokens: through encoder and decoder in one forward pass: in training at the mean mask ratio, in sampling at the
            first and at the last step.
        training_gflop, sampling_gflop: by part, what runs for one image; `total` is their sum. Perceptual losses are
            not counted; the injector is, in the backbone.
        memory_gb: of one training process, see `training_memory`; and of sampling one image, on a CPU with a second
            copy of large weights (`mixar_core.products`).
    """

    parameters: int
    parts: tuple[PartCost, ...]
    tokens: dict[str, int]
    training_gflop: dict[str, Figure]
    sampling_gflop: dict[str, Figure]
    memory_gb: dict[str, Figure]


def estimate(system: System, *, processes: int = 1, images: int | None = None) -> Estimate:
    """Estimate of a system built with `meta=True`; memory is that of one of `processes` that share its training.

    `images` of the training split, where that is known, are counted where `training.cache` is memory.

    Raises:
        UserError: the injector opens other doors than it announced.
    """
    parts, tokens = _parts(system), _tokens(system)
    training, sampling = gflop_of(system)
    weights = sum(part.parameters for part in parts if part.part != "discriminator")
    memory = training_memory(system, processes=processes, images=images)
    memory["sampling"] = figure(lambda: _sampling_gb(system, weights))
    if sampled := system.model or system.prior:
        packed = sum(layer.weight.numel() for layer in packable(sampled))
        memory["sampling_on_cpu"] = figure(lambda: _sampling_gb(system, weights + packed))
    return Estimate(system.parameters, parts, tokens, training, sampling, memory)


def gflop_of(system: System) -> tuple[dict[str, Figure], dict[str, Figure]]:
    """`training_gflop` and `sampling_gflop` of an Estimate, for a system built with `meta=True`."""
    training, sampling = _training(system), _sampling(system)
    training["total"], sampling["total"] = total(training), total(sampling)
    return training, sampling


def training_flop_per_image(system: System) -> float | None:
    """Model FLOP of one image in a training step: forward and backward, activations that are recomputed counted once.

    What the frozen parts compute counts where it is computed at every step: tokenizers not where `training.cache` keeps
    tokens. The prior of TI-Mix counts by the share of the run in which it is asked. None where something cannot be
    counted.

    Args:
        system: built with `meta=True`.
    """
    costs = _training(system, recomputed=False)
    recipe = system.recipe
    if recipe.training is not None and recipe.training.cache != "none":
        costs = {part: cost for part, cost in costs.items() if part in recipe.trained_parts or "tokenizer" not in part}
    gflop = total(costs)
    return None if isinstance(gflop, str) else 1e9 * gflop


def _gflop(run: Callable[[], object]) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 1e9


def _figure(run: Callable[[], object], factor: float = 1.0) -> Figure:
    return figure(lambda: factor * _gflop(run))


def _gflop_at(counts: Iterable[int], run: Callable[[int], object], wanted: Sequence[int]) -> float:
    """Of one run at each of the `wanted` numbers, summed: of a polynomial in them, which runs at `counts` tell."""
    measured = sorted(set(counts))
    told = [_gflop(partial(run, count)) for count in measured]
    return float(np.polyval(np.polyfit(measured, told, len(measured) - 1), wanted).sum())


def _gflop_of_steps(run: Callable[[int | None], object], steps: int | None) -> float:
    """Of a sampler, whose FLOP are affine in its steps."""
    return _gflop(lambda: run(None)) if steps is None else _gflop_at((2, 4), run, [steps])


# ---------------------------------------------------------------- by part


def _training(system: System, *, recomputed: bool = True) -> dict[str, Figure]:
    recipe, model, noise = system.recipe, system.model, Noise.seeded(0)
    continuous, discrete, prior = system.continuous_tokenizer, system.discrete_tokenizer, system.prior
    pixels = Grid.of_pixels(recipe.image_size)
    images_B3HW = torch.zeros(1, 3, pixels.height, pixels.width, device=META)
    passes = trained_passes(system, _masked(system))
    costs = {part: _figure(run, FORWARDS_A_STEP) for part, run in passes.items()}
    if recomputed and model is not None and checkpoints_activations(recipe):
        costs["backbone"] = _figure(passes["backbone"], FORWARDS_CHECKPOINTED)
    if model is not None and continuous is not None and "continuous_tokenizer" not in passes:
        costs["continuous_tokenizer"] = _figure(lambda: beside_codes(system, continuous).posterior(images_B3HW))
    learns_codes = recipe.trains == "prior" if model is None else model.learns_codes
    if learns_codes and discrete is not None and "discrete_tokenizer" not in passes:
        costs["discrete_tokenizer"] = _figure(lambda: discrete.encode(images_B3HW))
    if model is not None and learns_codes and prior is not None and "prior" not in passes:
        mixed = recipe.ti_mix.lambda_at(1.0) < 1.0
        share = 1.0 - recipe.ti_mix.begin if mixed and recipe.ti_mix.lambda_at(0.0) == 1.0 else float(mixed)
        codes_BN = codes_of(prior.layout.tokens)
        costs["prior"] = (
            _figure(
                lambda: prior.predict(codes_BN, codes_BN == 0, system.condition(codes_BN[:, 0]), noise=noise), share
            )
            if mixed
            else 0
        )
    return costs


def _sampling(system: System) -> dict[str, Figure]:
    """Of a tokenizer, encoding and decoding."""
    model, recipe, settings, prior = system.model, system.recipe, system.recipe.sampling, system.prior
    noise = Noise.seeded(0)
    if model is None and recipe.trains != "prior":
        return {recipe.trains: _figure(trained_passes(system)[recipe.trains])}
    costs: dict[str, Figure] = {}
    if model is not None:
        plan, z_BKD = partial(planned_steps, model, settings), torch.zeros(1, 1, model.backbone.width, device=META)
        costs["backbone"] = figure(lambda: _backbone_gflop(system, model, plan()))
        costs["head"] = figure(lambda: _head_gflop(model.head, plan(), Z(z_BKD, codes_of(1), z_BKD)))
        if model.head.denoises:  # counted where it is: in the backbone
            costs["head"] = 0
    if prior is not None and (model is None or model.injector.needs_codes):

        def draw_codes(steps: int | None) -> Tensor:
            condition = system.condition(codes_of(1)[0])
            return prior.sample(condition, noise=noise, steps=steps, cfg=settings.prior_cfg).codes_BN

        prior_steps = settings.prior_steps or _own(prior, "steps")
        costs["prior"] = figure(lambda: _gflop_of_steps(draw_codes, prior_steps))
    decoder = "discrete_tokenizer" if model is None else "continuous_tokenizer"
    return {**costs, decoder: _figure(lambda: _decode(system))}


def planned_steps(model: MixAR, settings: SamplingConfig, labels_B: Tensor | None = None) -> Sequence[PlannedStep]:
    """The steps of sampling these labels, or without any one image on the meta device, each taken by the head.

    Raises:
        UserError: there is no such plan, or the head refuses one of its steps.
    """
    condition = model.condition(codes_of(1)[0] if labels_B is None else labels_B)
    steps = model.plan(condition, settings, noise=Noise.seeded(0)).steps
    for planned in steps:
        parts_of(model.head, planned.step, planned.positions_BK.shape[1])
    return steps


def _head_gflop(head: ContinuousHead, plan: Sequence[PlannedStep], z: Z) -> float:
    """Of the head, in all steps of sampling one image; z is that of one token."""
    drawn: Counter[tuple[int | None, bool]] = Counter()  # tokens, by what their cost depends on
    for planned in plan:
        for count, step in parts_of(head, planned.step, planned.positions_BK.shape[1]):
            drawn[step.head_steps, step.cfg != 1.0] += count

    def draw_token(head_steps: int | None, guided: bool) -> Tensor:
        return head.sample(z, Step(2.0 if guided else 1.0, head_steps=head_steps), noise=Noise.seeded(0))

    own = _own(head, "sampling_steps")
    return sum(
        count * _gflop_of_steps(partial(draw_token, guided=guided), steps or own)
        for (steps, guided), count in drawn.items()
    )


def _backbone_gflop(system: System, model: MixAR, plan: Sequence[PlannedStep]) -> float:
    """Of the backbone, in all steps of sampling one image."""
    backbone, condition = model.backbone, model.condition(codes_of(1)[0])
    tokens_BNC = torch.zeros(1, backbone.layout.tokens, backbone.token_dim, device=META)
    # each step computes little, and no two the same
    if not backbone.masks or any(planned.step.reuse for planned in plan):

        def run() -> None:
            guided = any(planned.step.cfg != 1.0 for planned in plan)
            state = backbone.start(condition, model.guidance(drawn_codes(system)), guided=guided)
            for planned in plan:
                z = state.predict(planned.positions_BK, planned.step)
                if model.head.denoises:
                    model.head.sample(z, planned.step, noise=Noise.seeded(0))
                state.reveal(planned.positions_BK, tokens_BNC[:, : planned.positions_BK.shape[1]])

        return _gflop(run)

    def begun(left: int, count: int = 1) -> Callable[[], object]:
        """Asks for `count` tokens when so many are not known; what the steps share is computed already."""
        state = backbone.start(condition, model.guidance(drawn_codes(system)), guided=False)
        if left < tokens_BNC.shape[1]:
            state.reveal(codes_of(tokens_BNC.shape[1] - left), tokens_BNC[:, left:])
        ask = partial(state.predict, codes_of(count), Step())
        ask()
        return ask

    passes: list[tuple[int, int]] = []  # how many tokens are not known in each, and are predicted; two of a guided step
    left = backbone.layout.tokens
    for planned in plan:
        count = planned.positions_BK.shape[1]
        left += count if planned.step.redraw else 0
        passes += [(left, count)] * (1 + (planned.step.cfg != 1.0))
        left -= count
    lefts = sorted({left for left, _ in passes})
    # attention is quadratic in the number of masked tokens and all else linear: three passes tell
    few = sorted({lefts[0], lefts[len(lefts) // 2], lefts[-1]})
    measured = [_gflop(begun(left)) for left in few]
    told = np.polyfit(few, measured, len(few) - 1)
    more = _gflop(begun(few[-1], 2)) - measured[-1]  # for each token more that is predicted
    shared = _gflop(partial(begun, few[-1])) - measured[-1]
    predicted = sum(float(np.polyval(told, left)) + more * (count - 1) for left, count in passes)
    return predicted + shared * (len(plan) if model.injector.follows else 1)


def _decode(system: System) -> Tensor:
    """An image, from latents or, where there is no continuous tokenizer, from codes."""
    continuous, discrete = system.continuous_tokenizer, system.discrete_tokenizer
    if continuous is not None:
        shape = (1, continuous.latent_channels, continuous.layout.shape.height, continuous.layout.shape.width)
        return beside_codes(system, continuous).decode(torch.zeros(shape, device=META))
    assert discrete is not None
    return discrete.decode(codes_of(discrete.layout.tokens))


def _own(part: object, setting: str) -> Any:
    """A part's own number of steps, or None where its config has none."""
    return getattr(getattr(part, "config", None), setting, None)


# ---------------------------------------------------------------- parameters, tokens, sampling's memory


def _masked(system: System) -> int:
    """Tokens of a MixAR masked in training at the mean ratio."""
    model = system.model
    return 0 if model is None else masked_tokens(system, system.recipe.masking.mean_ratio())


def _tokens(system: System) -> dict[str, int]:
    """Empty where there is no backbone, or something cannot run on the meta device."""
    model = system.model
    if model is None:
        return {}
    tokens = model.backbone.layout.tokens
    try:
        plan, masked = planned_steps(model, system.recipe.sampling), _masked(system)
        prefix_BPD = model.guidance(drawn_codes(system)).prefix_BPD
    except UserError:  # no such plan, or the injector opens other doors than it announced
        raise
    except Exception:  # the costs say why
        return {}
    config = None if system.recipe.backbone is None else system.recipe.backbone.config
    front = getattr(config, "buffer", 0) + (0 if prefix_BPD is None else prefix_BPD.shape[1])
    if not model.backbone.masks:
        return {"training_masked": masked, "training_decoder": front + tokens, "sampling_decoder": front + tokens}
    last = plan[-1].positions_BK.shape[1]
    return {
        "training_masked": masked,
        "training_encoder": front + tokens - masked,
        "training_decoder": front + tokens,
        "sampling_encoder_first": front,
        "sampling_encoder_last": front + tokens - last,
        "sampling_decoder": front + tokens,
    }


def _parts(system: System) -> tuple[PartCost, ...]:
    trained = dict(system.model.trained.items()) if system.model is not None else {}
    others = {key: getattr(system, key) for key in (*TRAINABLE, "conditioner", "discriminator")}
    return tuple(
        PartCost(
            key,
            getattr(getattr(system.recipe, key), "type", "mar"),
            sum(parameter.numel() for parameter in module.parameters()),
            key in (system.recipe.trains, "discriminator") or key in trained,
        )
        for key, module in {**trained, **others}.items()
        if module is not None
    )


def _sampling_gb(system: System, weights: int) -> float:
    """Gigabytes (1e9 bytes) for one image: all weights, and four tensors as large as a decoder's largest."""
    sizes = [0]

    def look(_: nn.Module, __: object, out: object) -> None:
        if isinstance(out, Tensor):
            sizes.append(out.numel())

    with torch.no_grad(), register_module_forward_hook(look):
        _decode(system)
    return 4e-9 * (weights + 4 * max(sizes))
