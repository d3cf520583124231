"""Claims of guidance itself: its four ways, TI-Mix, the gap that it bridges, stability."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import product
from typing import Any

from benchmarks.claims.claim import LOSS, MORE, NONE, PLAIN, SEEDS, SHIPPED, TRUTH, Claim, Entry, Expected, run_of
from benchmarks.claims.jobs import Drawn, Training

# ---------------------------------------------------------------- 1: guidance; its runs serve most claims

INJECTORS = ("none", "dc-mix", "dc-sa", "dc-ca")
BASE = {
    (injector, seed): run_of(injector, seed, {**PLAIN, "injector": {"type": injector}})
    for injector, seed in product(INJECTORS, SEEDS)
}

_NAMES = {"none": "none", "prior": "drawn", "truth": "true"}


def _guidance(runs: Mapping[tuple[str, int], Training], rank: int) -> Iterable[Entry]:
    for (injector, _), run in runs.items():
        for drawn in (NONE,) if injector == "none" else (Drawn(), TRUTH):
            yield Entry(injector, run, drawn, x=_NAMES[drawn.codes], rank=rank)
    for (injector, _), run in runs.items():
        if injector == "dc-mix":
            for drawn in (Drawn(alone=True), Drawn("truth", alone=True)):
                yield Entry("codes alone", run, drawn, x=_NAMES[drawn.codes], rank=rank)


GUIDANCE = Claim(
    "guidance",
    "Discrete tokens as guidance: none, DC-Mix, DC-SA, DC-CA",
    "Guidance by discrete tokens helps masked autoregression over continuous ones; DC-Mix has the best balance of cost "
    "and quality (abstract, Table 2, Figure 7).",
    tuple(_guidance(BASE, 0)),
    (
        Expected("codes lower the loss", "loss", "dc-mix", "none"),
        Expected("dc-mix lies closer to real images than MAR", "kernel", "dc-mix", "none", "drawn", "none"),
        Expected("dc-mix lies closer than dc-sa", "kernel", "dc-mix", "dc-sa", "drawn", "drawn"),
        Expected("dc-mix lies closer than dc-ca", "kernel", "dc-mix", "dc-ca", "drawn", "drawn"),
        Expected("dc-ca lies closer than dc-sa", "kernel", "dc-ca", "dc-sa", "drawn", "drawn"),
        Expected("dc-mix lies closer than its codes alone", "kernel", "dc-mix", "codes alone", "drawn", "drawn"),
        Expected("true codes serve better than drawn ones", "kernel", "dc-mix", "dc-mix", "true", "drawn"),
    ),
    figures=("parameters", "loss", "loss_at_equal_time", "ms_a_step", "recognised", "kernel", "frechet"),
    shown=("loss", "kernel", "frechet"),
    across="codes",
)

_EMOJI = {**PLAIN, "training.batch_size": 32, "training.warmup_steps": 50, "training.ema_decay": 0.99}
EMOJI = {
    (injector, seed): run_of(f"emoji-{injector}", seed, {**_EMOJI, "injector": {"type": injector}}, recipe="emoji64")
    for injector, seed in product(INJECTORS, SEEDS)
}
GUIDANCE_EMOJI = GUIDANCE.again("guidance-emoji", "The same on emoji", _guidance(EMOJI, 12))

# ---------------------------------------------------------------- 2: TI-Mix, after the same dc-mix training

_LAMBDA: dict[str, dict[str, Any]] = {
    "plain": {"schedule": "constant"},
    **{f"linear to {end:g}": {"schedule": "linear", "begin": 0.0, "end": end} for end in (0.8, 0.5, 0.0)},
    **{f"{schedule} to 0.5": {"schedule": schedule, "begin": 0.0, "end": 0.5} for schedule in ("cosine", "step")},
    "constant 0.5": {"schedule": "constant", "start": 0.5},
}
FIRST = ("plain", "linear to 0.8", "linear to 0.5", "linear to 0")
SCHEDULES = ("plain", "linear to 0.5", "cosine to 0.5", "step to 0.5", "constant 0.5")


def _further(
    arm: str, seed: int, begun: Training, changes: Mapping[str, Any], recipe: str = "digits_quick"
) -> Training:
    more: dict[str, Any] = {"training.steps": MORE, "training.warmup_steps": 20, "training.learning_rate": 5e-4}
    more |= {"ti_mix": _LAMBDA[arm], "init": {"from": f"{{{begun.name}}}"}, "accept_other_classes": True}
    name = f"{begun.name.rpartition('-')[0]}+{arm.replace(' ', '-')}"
    return run_of(name, seed, {**changes, **more}, begun.name, recipe=recipe)


TI_MIX_RUNS = {(arm, seed): _further(arm, seed, BASE["dc-mix", seed], LOSS) for arm, seed in product(_LAMBDA, SEEDS)}


def _ti_entries(arms: tuple[str, ...], runs: Mapping[tuple[str, int], Training], rank: int) -> tuple[Entry, ...]:
    return tuple(Entry(arm, run, Drawn(), rank=rank) for (arm, _), run in runs.items() if arm in arms)


def _ti_expected(arms: tuple[str, ...]) -> tuple[Expected, ...]:
    says = "TI-Mix ({}) lies closer than as long a training without it"
    return tuple(Expected(says.format(arm), "kernel", arm, "plain") for arm in arms[1:])


TI_MIX = Claim(
    "ti-mix",
    "TI-Mix: after the same DC-Mix training, plain or with lambda falling",
    "TI-Mix, in which the prior's predictions take the place of true codes more and more, improves generation "
    "consistently (abstract, Figure 8).",
    _ti_entries(FIRST, TI_MIX_RUNS, 1),
    _ti_expected(FIRST),
    figures=("loss", "ms_a_step", "recognised", "kernel", "frechet", "unlike"),
)
_BY_SCHEDULE = _ti_entries(SCHEDULES, TI_MIX_RUNS, 8)
TI_MIX_SCHEDULES = TI_MIX.again(
    "ti-mix-schedules", "TI-Mix: how lambda falls to 0.5", _BY_SCHEDULE, _ti_expected(SCHEDULES)
)
_TI_EMOJI = {
    (arm, seed): _further(arm, seed, EMOJI["dc-mix", seed], {**LOSS, "training.batch_size": 32}, "emoji64")
    for arm, seed in product(FIRST, SEEDS)
}
TI_MIX_EMOJI = TI_MIX.again("ti-mix-emoji", "The same on emoji", _ti_entries(FIRST, _TI_EMOJI, 13))

# ---------------------------------------------------------------- 3: whose codes

KINDS = {"truth": "true", "predicted": "3 of 4 predicted", "resampled": "3 of 4 resampled", "prior": "drawn"}
PRIOR_GAP = Claim(
    "prior-gap",
    "The gap between true codes and those of the prior",
    "Codes of real images, which training sees, differ from those that a prior draws; TI-Mix bridges the gap.",
    tuple(
        Entry(arm, run, Drawn(codes), x=label, rank=2)
        for arm, runs in {**{arm: [TI_MIX_RUNS[arm, s] for s in SEEDS] for arm in FIRST}, "shipped": SHIPPED}.items()
        for run, (codes, label) in product(runs, KINDS.items())
    ),
    (
        *(
            Expected(f"{arm}: true codes serve better than drawn ones, {figure}", figure, arm, arm, "true", "drawn")
            for arm in ("plain", "shipped")
            for figure in ("kernel", "frechet")
        ),
        Expected("TI-Mix is better where codes are drawn", "kernel", "linear to 0.5", "plain", "drawn", "drawn"),
    ),
    across="codes",
)

# ---------------------------------------------------------------- 9: stability

STABILITY = Claim(
    "stability",
    "Stability of training and of what is drawn, with TI-Mix and without",
    "Without TI-Mix the mismatch of training and inference makes training unstable and leaves artifacts at inference.",
    _ti_entries(FIRST, TI_MIX_RUNS, 1),
    (
        Expected("TI-Mix has smaller gradients", "norm_median", "linear to 0.5", "plain"),
        Expected("TI-Mix has fewer spikes of the gradient", "norm_spikes", "linear to 0.5", "plain"),
        Expected("TI-Mix has fewer spikes of the loss", "loss_spikes", "linear to 0.5", "plain"),
        Expected("with TI-Mix less is unlike real digits", "unlike", "linear to 0.5", "plain"),
    ),
    figures=("norm_median", "norm_largest", "norm_spikes", "loss_spikes", "diverged", "unlike", "recognised"),
    shown=("norm_median", "norm_spikes", "unlike"),
)
