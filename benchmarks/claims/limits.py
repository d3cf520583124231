"""Claims of how far guidance reaches: steps, the fill, bits of a code, the prior, sizes, temperature."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import Any

from benchmarks.claims.claim import NONE, PLAIN, SEEDS, SHIPPED, STEPS, TRUTH, Claim, Entry, Expected, run_of
from benchmarks.claims.guiding import BASE
from benchmarks.claims.jobs import Drawn, Training

# ---------------------------------------------------------------- 4: steps, on 64 tokens

_SMALL: dict[str, Any] = {"training.evaluate_every": 0, "training.preview_every": 0}
_OF_64 = {"latent_channels": 4, "channels": 16, "channel_multipliers": [1, 2, 4]}
C64 = run_of(
    "continuous64", 0, {**_SMALL, "continuous_tokenizer": _OF_64, "training.steps": 700}, recipe="digits_continuous"
)
D64 = run_of(
    "codes64",
    0,
    {
        **_SMALL,
        "discrete_tokenizer": {"bits": 6, "channels": 16, "channel_multipliers": [1, 2, 4]},
        "training.steps": 700,
    },
    recipe="digits_lfq",
)


def _prior(name: str, codes: str, bits: int, stride: int, steps: int, splits: int = 2) -> Training:
    sizes = {"bits": bits, "stride": stride, "splits": splits, "width": 128, "depth": 4, "mlp_dim": 512}
    changes = {**_SMALL, "prior": sizes, "training.steps": steps, "training.ema_decay": 0.99}
    return run_of(name, 0, {**changes, "discrete_tokenizer.weights": f"{{{codes}}}"}, codes, recipe="digits_prior")


P64 = _prior("prior64", D64.name, 6, 4, 700, splits=1)
RUNS_64 = {
    (injector, seed): run_of(
        f"{injector}-64",
        seed,
        {
            **PLAIN,
            "injector": {"type": injector},
            "backbone": {"width": 128, "depth": 3},
            "head": {"depth": 3, "width": 128},
            "continuous_tokenizer.weights": f"{{{C64.name}}}",
            "discrete_tokenizer.weights": f"{{{D64.name}}}",
            "prior.weights": f"{{{P64.name}}}",
        },
        C64.name,
        D64.name,
        P64.name,
    )
    for injector, seed in product(("none", "dc-mix"), SEEDS)
}
AR_STEPS, HEAD_STEPS = (1, 2, 4, 8, 16, 32, 64), (5, 10, 25, 50, 100)


def _steps() -> Iterable[Entry]:
    for (injector, _), run in RUNS_64.items():
        for steps in AR_STEPS:
            drawn = Drawn("none" if injector == "none" else "prior", steps)
            yield Entry(injector, run, drawn, x=steps, rank=3 if steps in (1, 8, 64) else 6)
        if injector == "dc-mix":
            for steps in (1, 8, 64):
                yield Entry("dc-mix, true codes", run, Drawn("truth", steps), x=steps, rank=7)
            yield Entry("codes alone", run, Drawn(alone=True), x=1, rank=3)


STEPS_CLAIM = Claim(
    "steps",
    "How many autoregressive steps: 64 tokens, with guidance and without",
    "The paper draws in 64 and in 256 steps; guidance may allow far fewer, because codes say already what tokens that "
    "are drawn together must agree on.",
    tuple(_steps()),
    (
        Expected("MAR needs steps: 64 are better than 1", "kernel", "none", "none", 64, 1),
        Expected("dc-mix needs steps: 64 are better than 1", "kernel", "dc-mix", "dc-mix", 64, 1),
        Expected("dc-mix in 1 step lies closer than MAR in 64", "kernel", "dc-mix", "none", 1, 64),
        Expected("of MAR 1 step is less coherent: more of it is unlike real digits", "unlike", "none", "none", 64, 1),
        Expected("of dc-mix 1 step is less coherent", "unlike", "dc-mix", "dc-mix", 64, 1),
    ),
    figures=("recognised", "kernel", "frechet", "unlike", "seams", "ms_an_image"),
    shown=("kernel", "recognised", "unlike"),
    across="autoregressive steps",
    logarithmic=True,
)
HEAD_STEPS_CLAIM = Claim(
    "head-steps",
    "How many steps of the head: 64 tokens, 8 autoregressive steps",
    "MAR draws every token in 100 steps of its head.",
    tuple(
        Entry(injector, run, Drawn("none" if injector == "none" else "prior", 8, head), x=head, rank=7)
        for (injector, _), run in RUNS_64.items()
        for head in HEAD_STEPS
    ),
    (
        Expected("MAR needs them: 100 are better than 10", "kernel", "none", "none", 100, 10),
        Expected("dc-mix needs them: 100 are better than 10", "kernel", "dc-mix", "dc-mix", 100, 10),
    ),
    figures=STEPS_CLAIM.figures,
    shown=STEPS_CLAIM.shown,
    across="steps of the head",
    logarithmic=True,
)

# ---------------------------------------------------------------- 5: the fill

_FILLS: dict[str, dict[str, Any]] = {
    "projected": {"injector": {"type": "dc-mix", "projection": True}},
    "learned": {"injector": {"type": "dc-mix-learned"}},
    "in the encoder": {"injector": {"type": "dc-mix"}, "backbone.type": "early-mixing"},
}
_FILL_RUNS = {("zero-padded", seed): BASE["dc-mix", seed] for seed in SEEDS} | {
    (fill, seed): run_of(f"fill-{fill.replace(' ', '-')}", seed, {**PLAIN, **changes})
    for (fill, changes), seed in product(_FILLS.items(), SEEDS)
}
FILL = Claim(
    "fill",
    "What stands at masked positions, and where",
    "DC-Mix fills masked positions of the decoder with code vectors (Eq. 9), which cost no parameter if padded.",
    tuple(
        Entry(fill, run, drawn, x="true" if drawn is TRUTH else "drawn", rank=4)
        for (fill, _), run in _FILL_RUNS.items()
        for drawn in (Drawn(), TRUTH)
    ),
    tuple(Expected(f"{fill}: lies closer than zero-padded", "kernel", fill, "zero-padded", "drawn") for fill in _FILLS),
    figures=("parameters", "ms_a_step", "loss", "recognised", "kernel", "frechet"),
    across="codes",
)

# ---------------------------------------------------------------- 6: bits of a code

BITS = (6, 8, 10, 12, 14)
CODES = {
    bits: run_of(
        f"codes{bits}", 0, {**_SMALL, "discrete_tokenizer.bits": bits, "training.steps": 1000}, recipe="digits_lfq"
    )
    for bits in BITS
}
PRIORS = {bits: _prior(f"prior{bits}", CODES[bits].name, bits, 8, 600) for bits in BITS}
_WIDTH_RUNS = {
    (bits, seed): run_of(
        f"dc-mix-{bits}bit",
        seed,
        {
            **PLAIN,
            "training.steps": 600,
            "discrete_tokenizer.weights": f"{{{CODES[bits].name}}}",
            "prior.weights": f"{{{PRIORS[bits].name}}}",
        },
        CODES[bits].name,
        PRIORS[bits].name,
    )
    for bits, seed in product(BITS, SEEDS)
}


def _width() -> Iterable[Entry]:
    for (bits, _), run in _WIDTH_RUNS.items():
        rank = 9 if bits in (6, 10, 14) else 10
        yield Entry("MixAR, drawn codes", run, Drawn(), x=bits, rank=rank)
        yield Entry("MixAR, true codes", run, TRUTH, x=bits, rank=rank)
        yield Entry("drawn codes alone", run, Drawn(alone=True), x=bits, rank=rank)
        yield Entry("true codes alone", run, Drawn("truth", alone=True), x=bits, rank=rank)


def _bits(says: str, figure: str, arm: str, lower: int, higher: int) -> Expected:
    return Expected(says, figure, arm, arm, lower, higher)


CODE_WIDTH = Claim(
    "code-width",
    "Bits of a code: 6 to 14",
    "A codebook that is too small loses detail: blurred images; one that is too large is hard to predict.",
    tuple(_width()),
    (
        _bits("small codes blur: MixAR at 6 bits is less sharp than at 14", "sharpness", "MixAR, drawn codes", 6, 14),
        _bits("small codes blur: alone, 6 bits are less sharp than 14", "sharpness", "true codes alone", 6, 14),
        _bits("from true codes more bits are better", "kernel", "MixAR, true codes", 14, 6),
        _bits("from drawn codes more bits are better", "kernel", "MixAR, drawn codes", 14, 6),
    ),
    figures=("loss", "recognised", "kernel", "frechet", "sharpness"),
    shown=("kernel", "sharpness", "recognised"),
    across="bits of a code",
)

# ---------------------------------------------------------------- 7: Figure 2, by how good the prior is

_TRAINED = (50, 150, 500)


WEAK = {
    data: {
        steps: run_of(f"{data}-prior-{steps}", 0, {**_SMALL, "training.steps": steps}, recipe=recipe)
        for steps in _TRAINED
    }
    for data, recipe in (("digits", "digits_prior"), ("emoji", "emoji64_prior"))
}
SHIPPED_EMOJI = tuple(Training(f"emoji64-{seed}", None, seed=seed, data="emoji", shipped="emoji64") for seed in SEEDS)


def _figure_2(arm: str, runs: Iterable[Training], data: str, shipped: int, rank: int) -> Iterable[Entry]:
    for run in runs:
        for steps, prior in (*WEAK[data].items(), (shipped, None)):
            name = None if prior is None else prior.name
            yield Entry(arm, run, Drawn(prior=name), x=steps, rank=rank)
            if run.shipped:
                yield Entry("codes alone", run, Drawn(prior=name, alone=True), x=steps, rank=rank)


def _closer(arm: str, shipped: int) -> tuple[Expected, ...]:
    return tuple(
        Expected(f"from a prior of {steps} steps, {arm} lies closer, {figure}", figure, arm, "codes alone", steps)
        for steps in (*_TRAINED, shipped)
        for figure in ("kernel", "frechet")
    )


FIGURE_2 = Claim(
    "figure-2",
    "What the codes decode to alone, and what MixAR makes of the same codes, by how long the prior was trained",
    "Discrete tokens alone lose detail; MixAR, from the same codes, draws it (Figure 2).",
    (
        *_figure_2("MixAR, shipped", SHIPPED, "digits", 2500, 4),
        *_figure_2(f"MixAR of {STEPS} steps", (BASE["dc-mix", seed] for seed in SEEDS), "digits", 2500, 5),
    ),
    (*_closer("MixAR, shipped", 2500), *_closer(f"MixAR of {STEPS} steps", 2500)),
    figures=("recognised", "kernel", "frechet", "sharpness"),
    across="steps of the prior",
    logarithmic=True,
)
FIGURE_2_EMOJI = Claim(
    "figure-2-emoji",
    "The same with the shipped emoji model",
    FIGURE_2.says,
    tuple(_figure_2("MixAR, shipped", SHIPPED_EMOJI, "emoji", 2200, 11)),
    _closer("MixAR, shipped", 2200),
    figures=FIGURE_2.figures,
    across=FIGURE_2.across,
    logarithmic=True,
)

# ---------------------------------------------------------------- 8: two sizes

_HALF = {"backbone": {"width": 96, "depth": 2}, "head": {"depth": 2, "width": 128}}
_SIZE_RUNS = {
    (f"{injector}, {size}", seed): BASE[injector, seed]
    if size == "4M"
    else run_of(f"{injector}-small", seed, {**PLAIN, **_HALF, "injector": {"type": injector}})
    for injector, size, seed in product(("none", "dc-mix"), ("4M", "small"), SEEDS)
}
SIZE = Claim(
    "size",
    "Two sizes each of MAR and DC-Mix",
    "Guidance helps at every size; a smaller MixAR does better than a larger MAR (Table 1).",
    tuple(Entry(arm, run, NONE if arm.startswith("none") else Drawn(), rank=4) for (arm, _), run in _SIZE_RUNS.items()),
    (
        Expected("guidance helps the small one", "kernel", "dc-mix, small", "none, small"),
        Expected("guidance helps the large one", "kernel", "dc-mix, 4M", "none, 4M"),
        Expected("the small dc-mix lies closer than the large MAR", "kernel", "dc-mix, small", "none, 4M"),
    ),
    figures=("parameters", "ms_a_step", "loss", "recognised", "kernel", "frechet"),
)

# ---------------------------------------------------------------- 10: temperature and the head's share

TEMPERATURES = (0.6, 0.8, 0.9, 1.0, 1.1)
TEMPERATURE = Claim(
    "temperature",
    "The head's temperature, and its share of parameters and time",
    "A temperature below 1 trades variety for fidelity; the head is small beside the transformer (MAR).",
    tuple(
        Entry(arm, run, Drawn("none" if arm == "none" else "prior", temperature=temperature), x=temperature, rank=3)
        for arm, runs in {
            "none": [BASE["none", seed] for seed in SEEDS],
            "dc-mix": [BASE["dc-mix", seed] for seed in SEEDS],
            "dc-mix, shipped": SHIPPED,
        }.items()
        for run, temperature in product(runs, TEMPERATURES)
    ),
    (
        Expected("below 1 MAR lies closer", "kernel", "none", "none", 0.8, 1.0),
        Expected("below 1 dc-mix lies closer", "kernel", "dc-mix", "dc-mix", 0.8, 1.0),
        Expected("below 1 the shipped model lies closer", "kernel", "dc-mix, shipped", "dc-mix, shipped", 0.8, 1.0),
        Expected("below 1 there is less variety", "variety", "dc-mix", "dc-mix", 0.8, 1.0),
    ),
    figures=("recognised", "kernel", "frechet", "variety", "sharpness"),
    shown=("kernel", "recognised", "variety"),
    across="temperature",
)
