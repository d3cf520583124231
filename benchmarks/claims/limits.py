"""Claims of how far guidance reaches: steps, the fill, bits of a code, the prior, sizes, temperature."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import product
from typing import Any

from benchmarks.claims.claim import NONE, PLAIN, SEEDS, SHIPPED, STEPS, TRUTH, Claim, Entry, Expected, run_of
from benchmarks.claims.guiding import BASE
from benchmarks.claims.jobs import Drawn, Training

#: of parts that others build on
_SMALL: dict[str, Any] = {"training.evaluate_every": 0, "training.preview_every": 0}
#: the emoji model that comes with mixar-zoo, drawn with by three seeds
SHIPPED_EMOJI = tuple(Training(f"emoji64-{seed}", None, seed=seed, data="emoji", shipped="emoji64") for seed in SEEDS)

# ---------------------------------------------------------------- 4: steps

#: autoregressive steps, and steps of the head in each
POINTS = ((1, 25), (4, 25), (16, 25), (4, 5), (4, 10), (4, 100))
#: the same on 64 tokens; what MixAR is drawn at is the shipped recipe's
POINTS_64 = ((1, 25), (4, 25), (16, 25), (64, 25), (4, 5), (4, 100))
EMOJI_TEMPERATURE = 0.3
_MAR: dict[str, Any] = {"injector": {"type": "none"}, "ti_mix": {"schedule": "constant"}}
_FINE: dict[str, Any] = {"continuous_tokenizer": {"channel_multipliers": [1, 2, 4], "latent_channels": 4}}
#: MAR, trained as long as the shipped MixAR; and on 64 tokens of 4 numbers once, drawn with by three seeds
MAR = [run_of("mar-long", seed, _MAR, recipe="digits") for seed in SEEDS]
TOKENIZER_64 = run_of("kl64", 0, {**_SMALL, **_FINE, "training.steps": 1000}, recipe="digits_continuous")
_MAR_64 = run_of(
    "mar64",
    0,
    {
        **_MAR,
        "discrete_tokenizer": None,
        "prior": None,
        "continuous_tokenizer.weights": f"{{{TOKENIZER_64.name}}}",
        "training.steps": 2000,
    },
    TOKENIZER_64.name,
    recipe="digits",
)
MAR_64 = (_MAR_64, *(Training(f"mar64-{seed}", None, seed=seed, needs=(_MAR_64.name,)) for seed in SEEDS[1:]))


def _steps(
    arms: Mapping[str, Iterable[Training]], points: Iterable[tuple[int, int]], temperature: float = 1.0
) -> Iterable[Entry]:
    for arm, runs in arms.items():
        for run, (steps, head) in product(runs, points):
            drawn = Drawn("none" if arm.startswith("MAR") else "prior", steps, head, temperature)
            yield Entry(arm, run, drawn, x=f"{steps} x {head}", rank=6 if run.shipped else 7)


def _needs(arm: str, says: str, most: int) -> tuple[Expected, ...]:
    return (
        *(
            Expected(f"{says}: {most} steps are better than 1, {figure}", figure, arm, arm, f"{most} x 25", "1 x 25")
            for figure in ("kernel", "unlike")
        ),
        Expected(f"{says}: 100 steps of the head are better than 5", "kernel", arm, arm, "4 x 100", "4 x 5"),
    )


STEPS_CLAIM = Claim(
    "steps",
    "How many steps guidance needs, autoregressive and of the head: 16 tokens",
    "The paper draws in 64 and in 256 steps, MAR in 100 of the head each; guidance may allow far fewer, because codes "
    "say already what tokens that are drawn together must agree on.",
    tuple(
        _steps(
            {
                f"MixAR of {STEPS} steps": [BASE["dc-mix", seed] for seed in SEEDS],
                "MixAR, shipped": SHIPPED,
                "MAR": MAR,
            },
            POINTS,
        )
    )
    + tuple(_steps({"MAR, 64 tokens": MAR_64}, POINTS_64)),
    (
        *_needs(f"MixAR of {STEPS} steps", f"after {STEPS} steps it needs them", 16),
        *_needs("MixAR, shipped", "the shipped one needs them", 16),
        *_needs("MAR", "MAR needs them", 16),
        *_needs("MAR, 64 tokens", "MAR needs them on 64 tokens", 64),
    ),
    figures=("recognised", "kernel", "frechet", "unlike", "seams", "ms_an_image"),
    shown=("kernel", "unlike", "ms_an_image"),
    across="steps x steps of the head",
)
STEPS_EMOJI = STEPS_CLAIM.again(
    "steps-emoji",
    "How many steps on 64 tokens: the shipped emoji model",
    _steps({"MixAR, shipped": SHIPPED_EMOJI}, POINTS_64, temperature=EMOJI_TEMPERATURE),
    _needs("MixAR, shipped", "it needs them", 64),
)

# ---------------------------------------------------------------- 5: the fill

#: the recipe's own: a part of another type starts from its defaults
_BACKBONE = {"width": 192, "depth": 3, "heads": 4, "buffer": 4, "dropout": 0.0, "attention_dropout": 0.0}
_FILLS: dict[str, dict[str, Any]] = {
    "projected": {"injector": {"type": "dc-mix", "projection": True}},
    "learned": {"injector": {"type": "dc-mix-learned"}},
    "in the encoder": {"injector": {"type": "dc-mix"}, "backbone": {"type": "early-mixing", **_BACKBONE}},
}
_FILL_RUNS = {("zero-padded", seed): BASE["dc-mix", seed] for seed in SEEDS} | {
    (fill, seed): run_of(f"fill-{fill.replace(' ', '-')}", seed, {**PLAIN, **changes})
    for (fill, changes), seed in product(_FILLS.items(), SEEDS)
}


def _fill(name: str, title: str, fills: tuple[str, ...]) -> Claim:
    return Claim(
        name,
        title,
        "DC-Mix fills masked positions of the decoder with code vectors (Eq. 9), which cost no parameter if padded.",
        tuple(
            Entry(fill, run, drawn, x="true" if drawn is TRUTH else "drawn", rank=4)
            for (fill, _), run in _FILL_RUNS.items()
            for drawn in (Drawn(), TRUTH)
            if fill in ("zero-padded", *fills)
        ),
        tuple(
            Expected(f"{fill}: lies closer than zero-padded", "kernel", fill, "zero-padded", "drawn") for fill in fills
        ),
        figures=("parameters", "ms_a_step", "loss", "recognised", "kernel", "frechet"),
        across="codes",
    )


FILL = _fill("fill", "What stands at masked positions", ("projected", "learned"))
FILL_WHERE = _fill(
    "fill-where", "Codes at masked positions of the decoder, or of the encoder already", ("in the encoder",)
)

# ---------------------------------------------------------------- 6: bits of a code

BITS = (6, 10, 14)
CODES = {
    bits: run_of(
        f"codes{bits}", 0, {**_SMALL, "discrete_tokenizer.bits": bits, "training.steps": 1000}, recipe="digits_lfq"
    )
    for bits in BITS
}


def _prior(bits: int) -> Training:
    sizes = {"bits": bits, "stride": 8, "splits": 2, "width": 128, "depth": 4, "mlp_dim": 512}
    changes = {**_SMALL, "prior": sizes, "training.steps": 600, "training.ema_decay": 0.99}
    changes |= {"discrete_tokenizer.weights": f"{{{CODES[bits].name}}}"}
    return run_of(f"prior{bits}", 0, changes, CODES[bits].name, recipe="digits_prior")


PRIORS = {bits: _prior(bits) for bits in BITS}
_WIDTH_RUNS = {
    (bits, seed): run_of(
        f"dc-mix-{bits}bit",
        seed,
        {
            **PLAIN,
            "training.steps": 400,
            "discrete_tokenizer.weights": f"{{{CODES[bits].name}}}",
            "prior.weights": f"{{{PRIORS[bits].name}}}",
        },
        CODES[bits].name,
        PRIORS[bits].name,
    )
    for bits, seed in product(BITS, SEEDS)
}


_SETS = {
    "MixAR, drawn codes": Drawn(),
    "MixAR, true codes": TRUTH,
    "drawn codes alone": Drawn(alone=True),
    "true codes alone": Drawn("truth", alone=True),
}
_DRAWN, _TRUE = ("MixAR, drawn codes", "MixAR, drawn codes"), ("MixAR, true codes", "MixAR, true codes")


CODE_WIDTH = Claim(
    "code-width",
    "Bits of a code: 6, 10, 14",
    "A codebook that is too small loses detail: blurred images; one that is too large is hard to predict.",
    tuple(
        Entry(arm, run, drawn, x=bits, rank=10 if bits == 10 else 9)
        for (bits, _), run in _WIDTH_RUNS.items()
        for arm, drawn in _SETS.items()
    ),
    (  # nothing of the true codes alone: of one tokenizer each they are the same at every seed
        Expected("small codes blur: MixAR at 6 bits is less sharp than at 14", "sharpness", *_DRAWN, 6, 14),
        Expected("from true codes more bits are better", "kernel", *_TRUE, 14, 6),
        Expected("from drawn codes more bits are better", "kernel", *_DRAWN, 14, 6),
    ),
    figures=("loss", "recognised", "kernel", "frechet", "sharpness"),
    shown=("kernel", "sharpness", "recognised"),
    across="bits of a code",
)

# ---------------------------------------------------------------- 7: Figure 2, by how good the prior is

_TRAINED = (50, 150, 500)
_WEAK_RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "digits": ("digits_prior", {}),
    # batches of 32 instead of 128; drawn with as the shipped recipe draws
    "emoji": ("emoji64_prior", {"training.batch_size": 32, "training.warmup_steps": 20, "prior.steps": 16}),
}
WEAK = {
    data: {
        steps: run_of(f"{data}-prior-{steps}", 0, {**_SMALL, **changes, "training.steps": steps}, recipe=recipe)
        for steps in _TRAINED
    }
    for data, (recipe, changes) in _WEAK_RECIPES.items()
}


def _figure_2(arm: str, runs: Iterable[Training], shipped: int, rank: int, temperature: float = 1.0) -> Iterable[Entry]:
    for run in runs:
        for steps, prior in (*WEAK[run.data].items(), (shipped, None)):
            name = None if prior is None else prior.name
            yield Entry(arm, run, Drawn(prior=name, temperature=temperature), x=steps, rank=rank)
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
        *_figure_2("MixAR, shipped", SHIPPED, 2500, 4),
        *_figure_2(f"MixAR of {STEPS} steps", (BASE["dc-mix", seed] for seed in SEEDS), 2500, 5),
    ),
    (*_closer("MixAR, shipped", 2500), *_closer(f"MixAR of {STEPS} steps", 2500)),
    figures=("recognised", "kernel", "frechet", "sharpness"),
    across="steps of the prior",
    logarithmic=True,
)
FIGURE_2_EMOJI = FIGURE_2.again(
    "figure-2-emoji",
    "The same with the shipped emoji model",
    _figure_2("MixAR, shipped", SHIPPED_EMOJI, 11287, 11, EMOJI_TEMPERATURE),
    _closer("MixAR, shipped", 11287),
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
