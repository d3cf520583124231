"""What a recipe costs, before anything is allocated: parameters, tokens, FLOP, memory. Counted on the meta device.

FLOP are what `torch.utils.flop_counter` counts: one multiplication or one addition each, of dense layers, convolutions
and attention; norms, activations and softmax are left out, as is usual. A backward pass counts as two forward passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from attrs import field, frozen
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.flop_counter import FlopCounterMode

from mixar.assembly import System
from mixar.memory import Figure, total, trained_passes, training_memory, why_not
from mixar_core.errors import UserError
from mixar_core.masking import masked_after_step, masked_count
from mixar_core.model import MixAR
from mixar_core.noise import Noise

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
        memory_gb: of one training process, see `training_memory`; and of sampling one image.
    """

    parameters: int
    parts: tuple[PartCost, ...]
    tokens: dict[str, int] = field(factory=dict)
    training_gflop: dict[str, Figure] = field(factory=dict)
    sampling_gflop: dict[str, Figure] = field(factory=dict)
    memory_gb: dict[str, Figure] = field(factory=dict)


def estimate(system: System, *, processes: int = 1) -> Estimate:
    """Estimate of a system built with `meta=True`; memory is that of one of `processes` that share its training.

    Raises:
        UserError: the injector opens other doors than it announced.
    """
    parts, tokens = _parts(system), _tokens(system)
    training, sampling = _training(system), _sampling(system)
    memory = training_memory(system, processes=processes) | {"sampling": _sampling_memory(system, parts)}
    training["total"], sampling["total"] = total(training), total(sampling)
    return Estimate(system.parameters, parts, tokens, training, sampling, memory)


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
        costs = {part: cost for part, cost in costs.items() if part == recipe.trains or "tokenizer" not in part}
    gflop = total(costs)
    return None if isinstance(gflop, str) else 1e9 * gflop


def _gflop(run: Callable[[], object], factor: float = 1.0) -> Figure:
    """`factor` times what `run` computes on the meta device, or why that cannot be counted."""
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            run()
    except Exception as error:  # no meta kernel, no data to draw from, or whatever a part raises that looks at values
        return why_not(error)
    return factor * counter.get_total_flops() / 1e9


def _gflop_of_steps(run: Callable[[int | None], object], steps: int | None, factor: float = 1.0) -> Figure:
    """GFLOP of a sampler. They are affine in its steps, so where `steps` is known two short runs tell."""
    if steps is None or steps <= 2:
        return _gflop(lambda: run(steps), factor)
    one, two = _gflop(lambda: run(1), factor), _gflop(lambda: run(2), factor)
    if isinstance(one, str) or isinstance(two, str):
        return one if isinstance(one, str) else two
    return one + (two - one) * (steps - 1)


# ---------------------------------------------------------------- by part


def _training(system: System, *, recomputed: bool = True) -> dict[str, Figure]:
    recipe, model, noise = system.recipe, system.model, Noise.seeded(0)
    continuous, discrete, prior = system.continuous_tokenizer, system.discrete_tokenizer, system.prior
    images_B3HW = torch.zeros(1, 3, recipe.image_size, recipe.image_size, device=META)
    passes = trained_passes(system, 0 if model is None else _masked(system, model))
    again = recomputed and recipe.backbone.activation_checkpointing
    forwards = {"backbone": FORWARDS_CHECKPOINTED if again else FORWARDS_A_STEP}
    costs = {part: _gflop(run, forwards.get(part, FORWARDS_A_STEP)) for part, run in passes.items()}
    if model is not None and continuous is not None:
        costs["continuous_tokenizer"] = _gflop(lambda: continuous.posterior(images_B3HW))
    needs_codes = recipe.trains == "prior" if model is None else model.injector.needs_codes
    if needs_codes and discrete is not None:
        costs["discrete_tokenizer"] = _gflop(lambda: discrete.encode(images_B3HW))
    if model is not None and needs_codes and prior is not None:
        mixed = recipe.ti_mix.lambda_at(1.0) < 1.0
        share = 1.0 - recipe.ti_mix.begin if mixed and recipe.ti_mix.lambda_at(0.0) == 1.0 else float(mixed)
        codes_BN = _codes(prior.grid.tokens)
        costs["prior"] = (
            _gflop(lambda: prior.predict(codes_BN, codes_BN == 0, codes_BN[:, 0], noise=noise), share) if mixed else 0.0
        )
    return costs


def _sampling(system: System) -> dict[str, Figure]:
    """Of a tokenizer, encoding and decoding."""
    model, recipe, settings, prior = system.model, system.recipe, system.recipe.sampling, system.prior
    if model is None and recipe.trains != "prior":
        return {part: _gflop(run) for part, run in trained_passes(system).items()}
    costs: dict[str, Figure] = {}
    if model is not None:
        tokens, head = model.backbone.grid.tokens, model.head
        guided = settings.cfg != 1.0 and recipe.num_classes > 0
        z_RD = torch.zeros(1, model.backbone.width, device=META)
        z_uncond_RD = z_RD if guided else None

        def draw_token(steps: int | None) -> Tensor:
            return head.sample(z_RD, z_uncond_RD=z_uncond_RD, cfg=settings.cfg, steps=steps, noise=Noise.seeded(0))

        left = [tokens, *masked_after_step(tokens, settings.steps)]
        costs["backbone"] = _backbone_gflop(system, [now for now, then in pairwise(left) if then < now], 1 + guided)
        costs["head"] = _gflop_of_steps(draw_token, settings.head_steps or _own(head, "sampling_steps"), tokens)
    if prior is not None and (model is None or model.injector.needs_codes):

        def draw_codes(steps: int | None) -> Tensor:
            return prior.sample(_codes(1)[0], noise=Noise.seeded(0), steps=steps, cfg=settings.prior_cfg)

        costs["prior"] = _gflop_of_steps(draw_codes, settings.prior_steps or _own(prior, "steps"))
    costs["discrete_tokenizer" if model is None else "continuous_tokenizer"] = _gflop(lambda: _decode(system))
    return costs


def _backbone_gflop(system: System, masked: Sequence[int], factor: float) -> Figure:
    """`factor` times one pass each over one image of which so many tokens are not known, summed.

    Attention is quadratic in their number and all else linear, so that three passes tell of any number of them.
    """
    told: dict[int, float] = {}
    for count in {max(masked), sorted(masked)[len(masked) // 2], min(masked)}:
        gflop = _gflop(trained_passes(system, count)["backbone"], factor)
        if isinstance(gflop, str):
            return gflop
        told[count] = gflop
    through = np.polyfit(list(told), list(told.values()), len(told) - 1)
    return float(np.polyval(through, masked).sum())


def _decode(system: System) -> Tensor:
    """An image, from latents or, where there is no continuous tokenizer, from codes."""
    continuous, discrete = system.continuous_tokenizer, system.discrete_tokenizer
    if continuous is not None:
        shape = (1, continuous.latent_channels, continuous.grid.height, continuous.grid.width)
        return continuous.decode(torch.zeros(shape, device=META))
    assert discrete is not None
    return discrete.decode(_codes(discrete.grid.tokens))


def _own(part: object, setting: str) -> int | None:
    """A part's own number of steps, where its config has one."""
    steps: int | None = getattr(getattr(part, "config", None), setting, None)
    return steps


def _codes(tokens: int) -> Tensor:
    return torch.zeros(1, tokens, dtype=torch.int64, device=META)


# ---------------------------------------------------------------- parameters, tokens, sampling's memory


def _masked(system: System, model: MixAR) -> int:
    """Tokens masked in training at the mean ratio."""
    return masked_count(system.recipe.masking.mean_ratio(), model.backbone.grid.tokens)


def _tokens(system: System) -> dict[str, int]:
    """Empty where there is no backbone, or its injector cannot run on the meta device.

    Raises:
        UserError: see MixAR.guidance.
    """
    model = system.model
    if model is None:
        return {}
    masked, tokens = _masked(system, model), model.backbone.grid.tokens
    try:
        guidance = model.guidance(_codes(tokens))
    except UserError:  # it opens other doors than it announced
        raise
    except Exception:  # the costs say why
        return {}
    front = system.recipe.backbone.buffer + (0 if guidance.prefix_BPD is None else guidance.prefix_BPD.shape[1])
    last = ([tokens, *masked_after_step(tokens, system.recipe.sampling.steps)])[-2]
    return {
        "training_masked": masked,
        "training_encoder": front + tokens - masked,
        "training_decoder": front + tokens,
        "sampling_encoder_first": front,
        "sampling_encoder_last": front + tokens - last,
        "sampling_decoder": front + tokens,
    }


def _parts(system: System) -> tuple[PartCost, ...]:
    modules: Mapping[str, nn.Module | None] = {
        **(dict(system.model.trained.items()) if system.model is not None else {}),
        **{key: getattr(system, key) for key in ("continuous_tokenizer", "discrete_tokenizer", "prior")},
    }
    return tuple(
        PartCost(
            key,
            getattr(getattr(system.recipe, key), "type", "mar"),
            sum(parameter.numel() for parameter in module.parameters()),
            key == system.recipe.trains or key in ("backbone", "injector", "head"),
        )
        for key, module in modules.items()
        if module is not None
    )


def _sampling_memory(system: System, parts: Iterable[PartCost]) -> Figure:
    """Gigabytes (1e9 bytes) for one image: all weights, and four tensors as large as a decoder's largest."""
    largest = 0

    def look(_: nn.Module, __: object, out: object) -> None:
        nonlocal largest
        largest = max(largest, out.numel() if isinstance(out, Tensor) else 0)

    hook = register_module_forward_hook(look)
    try:
        counted = _gflop(lambda: _decode(system))
    finally:
        hook.remove()
    return counted if isinstance(counted, str) else 4e-9 * (sum(part.parameters for part in parts) + 4 * largest)
