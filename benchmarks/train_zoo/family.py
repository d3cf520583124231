"""The candidates of a family, as data: what each run changes in which recipe, and what it waits for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import evolve, field, frozen


@frozen
class Run:
    """A training.

    Args:
        base: the recipe that it changes; None: that of the run it continues.
        changes: of the recipe, by dotted keys.
        frozen: runs that give its frozen parts, by recipe key; of several the best by what was measured.
        continues: runs of which the best is where it begins, with that one's recipe and prior.
        prior: the run whose codes a MixAR draws from when it is measured; it may be trained at the same time.
        share: of its stage's time.
    """

    base: str | None
    changes: Mapping[str, Any] = field(factory=dict)
    frozen: Mapping[str, tuple[str, ...]] = field(factory=dict)
    continues: tuple[str, ...] = ()
    prior: str | None = None
    share: float = 1.0


@frozen
class Stage:
    """Runs side by side, and their share of the family's minutes."""

    runs: Mapping[str, Run]
    share: float


@frozen
class Family:
    """What is trained, stage after stage; the categories that images are drawn of are the first so many classes."""

    stages: Mapping[str, Stage]
    data: str
    image_size: int
    categories: int

    def run(self, name: str) -> Run:
        """A run by its name."""
        return next(stage.runs[name] for stage in self.stages.values() if name in stage.runs)

    def only(self, names: Sequence[str]) -> Family:
        """These runs alone.

        Raises:
            LookupError: there is none of such a name.
        """
        if unknown := {*names} - {name for stage in self.stages.values() for name in stage.runs}:
            raise LookupError(f"no run {', '.join(sorted(unknown))}")
        stages = {
            name: evolve(stage, runs={key: run for key, run in stage.runs.items() if key in names})
            for name, stage in self.stages.items()
        }
        return evolve(self, stages=stages)

    def quick(self) -> Family:
        """The same runs in sizes and steps of nearly nothing, to see that all of it goes through.

        The first of a stage finds out as usual how many steps fit.
        """

        def small(index: int, run: Run) -> Run:
            return evolve(run, changes={**run.changes, **_tiny(run), **({"training.steps": 16} if index else {})})

        stages = {
            name: evolve(stage, runs={key: small(k, run) for k, (key, run) in enumerate(stage.runs.items())})
            for name, stage in self.stages.items()
        }
        return evolve(self, stages=stages)


def _tiny(run: Run) -> dict[str, Any]:
    kinds: dict[str, dict[str, Any]] = {
        "emoji64_continuous": {"continuous_tokenizer.channels": 8, "continuous_tokenizer.blocks": 1},
        "emoji64_lfq": {"discrete_tokenizer.channels": 8, "discrete_tokenizer.blocks": 1},
        "emoji64_prior": {"prior.width": 32, "prior.depth": 1, "prior.mlp_dim": 32, "prior.steps": 4},
        "emoji64": {
            "backbone.width": 64,
            "backbone.depth": 1,
            "head.width": 32,
            "head.depth": 1,
            "head.sampling_steps": 4,
            "sampling.steps": 2,
        },
    }
    sizes = {"training.batch_size": 4, "training.evaluate_batches": 1, "training.flip": False}
    if "extractor" in run.changes:
        sizes |= {"extractor.maps_scale": 1}
    if "discriminator" in run.changes:
        sizes |= {"discriminator.channels": 8}
    return sizes | kinds.get(run.base or "", {})


_TRAINING: dict[str, Any] = {
    "training.learning_rate_per": None,
    "training.schedule": "cosine",
    "training.precision": "bf16",
    "training.clip": 1.0,
    "training.cache": "memory",
    "training.preview_every": 0,
    "callbacks": [],
}
#: of both tokenizers: convolutions of these widths, pixels and features
_TOKENIZER = {
    **_TRAINING,
    "training.batch_size": 96,
    "training.learning_rate": 8.0e-4,
    "training.weight_decay": 0.0,
    "training.ema_decay": 0.999,
    "training.flip": True,
    # twice the images' size: features of positions that the judges' resizing makes them of, too
    "extractor": {"type": "efficientnet-lite0", "maps_scale": 2},
    "reconstruction.loss": "l1",
    "reconstruction.perceptual_weight": 0.5,
}
_CONTINUOUS = {
    **_TOKENIZER,
    "continuous_tokenizer.channels": 32,
    "continuous_tokenizer.channel_multipliers": [1, 2, 4, 4],
    "continuous_tokenizer.blocks": 2,
    "reconstruction.kl_weight": 5.0e-6,
}
_DISCRETE = {
    **_TOKENIZER,
    "discrete_tokenizer.channels": 32,
    "discrete_tokenizer.channel_multipliers": [1, 2, 4, 4],
    "discrete_tokenizer.blocks": 1,
    "discrete_tokenizer.bits": 12,
}
#: late: a tokenizer that does not reconstruct yet loses by it (docs/results/tokenizer-losses.md)
_ADVERSARIAL = {
    "discriminator": {"type": "patchgan", "channels": 64, "layers": 2},
    "adversarial": {"weight": 0.3, "adaptive": True, "lecam_weight": 0.001},
    "training.betas": [0.5, 0.95],
}
_PRIOR = {
    **_TRAINING,
    "prior.bits": 12,
    "prior.stride": 8,
    "prior.width": 256,
    "prior.depth": 8,
    "prior.dropout": 0.2,
    "prior.steps": 32,
    "prior.guidance_scale": 1.5,
    "prior.randomize_temperature": 3.0,
    "training.batch_size": 128,
    "training.learning_rate": 1.0e-3,
    "training.weight_decay": 0.045,
    "training.betas": [0.9, 0.96],
    "training.ema_decay": 0.999,
}
#: tokens of one latent, guided by codes that stand where they do
_MIXAR = {
    **_TRAINING,
    "prior": None,
    "backbone": {
        "width": 256,
        "depth": 4,
        "heads": 4,
        "buffer": 8,
        "patch_size": 1,
        "dropout": 0.1,
        "attention_dropout": 0.1,
    },
    "head": {"type": "diffusion", "depth": 4, "width": 384, "sampling_steps": 50, "clip": 4.0},
    "masking": {"ratio_std": 0.35, "ratio_min": 0.3},
    "ti_mix": {"schedule": "constant"},
    "sampling": {"steps": 8, "cfg": 2.0, "temperature": 0.8},
    "training.batch_size": 192,
    "training.learning_rate": 8.0e-4,
    "training.ema_decay": 0.999,
    "training.flip": True,
}
#: the decoder alone, by squares of what is not clamped: without norms its activations had grown at the lower edge, to
#: 27 where images have 1 at most, and absolute differences pull at those no harder than at any other pixel
_DECODER = {
    "init.freeze": ["encoder", "quant_conv"],
    "reconstruction.loss": "l2",
    "reconstruction.reconstruction_weight": 5.0,
    "training.steps": 480,
    "training.batch_size": 16,
    "training.learning_rate": 2.0e-4,
    "training.ema_decay": 0.99,
}
_HARDER = {
    "reconstruction.reconstruction_weight": 10.0,
    "reconstruction.statistics_images": 64,
    "training.steps": 400,
    "training.learning_rate": 4.0e-4,
}
_HARDEST = {"reconstruction.reconstruction_weight": 30.0, "training.steps": 450}
_SUBCATEGORIES = {"num_classes": 107, "data": {"type": "emoji64", "subcategories": True}}
_D8 = {"discrete_tokenizer": ("d8", "d8g")}
_C16 = {"continuous_tokenizer": ("c16", "c16a", "c16g")}
_BEST16 = {**_C16, **_D8}
_COARSE = {**_C16, "discrete_tokenizer": ("d4",)}

EMOJI64 = Family(
    data="emoji64",
    image_size=64,
    categories=9,
    stages={
        "tokenizers": Stage(
            share=0.50,
            runs={
                "c16": Run("emoji64_continuous", {**_CONTINUOUS, "reconstruction.perceptual_weight": 1.0}),
                "c16a": Run("emoji64_continuous", {**_CONTINUOUS, **_ADVERSARIAL}),
                "c16g": Run(
                    "emoji64_continuous", {**_CONTINUOUS, **_ADVERSARIAL, "continuous_tokenizer.norm": "group"}
                ),
                "c8a": Run(
                    "emoji64_continuous", {**_CONTINUOUS, **_ADVERSARIAL, "continuous_tokenizer.latent_channels": 8}
                ),
                "d8": Run("emoji64_lfq", {**_DISCRETE, **_ADVERSARIAL}),
                "d8g": Run("emoji64_lfq", {**_DISCRETE, **_ADVERSARIAL, "discrete_tokenizer.norm": "group"}),
                "d4": Run(
                    "emoji64_lfq",
                    {
                        **_DISCRETE,
                        **_ADVERSARIAL,
                        "discrete_tokenizer.channel_multipliers": [1, 2, 4, 4, 8],
                        "discrete_tokenizer.bits": 14,
                    },
                ),
            },
        ),
        "models": Stage(
            share=0.30,
            runs={
                "p8": Run("emoji64_prior", _PRIOR, _D8),
                "p8s": Run("emoji64_prior", {**_PRIOR, **_SUBCATEGORIES}, _D8),
                "p4": Run(
                    "emoji64_prior",
                    {
                        **_PRIOR,
                        "prior.bits": 14,
                        "prior.stride": 16,
                        "prior.steps": 16,
                        "prior.randomize_temperature": 1.5,
                    },
                    {"discrete_tokenizer": ("d4",)},
                ),
                "m8": Run("emoji64", _MIXAR, _BEST16, prior="p8"),
                "m8s": Run("emoji64", {**_MIXAR, **_SUBCATEGORIES}, _BEST16, prior="p8s"),
                "m8c8": Run("emoji64", _MIXAR, {**_BEST16, "continuous_tokenizer": ("c8a",)}, prior="p8"),
                "m8w": Run("emoji64", {**_MIXAR, "head.width": 512, "head.depth": 6}, _BEST16, prior="p8"),
                "m4": Run("emoji64", {**_MIXAR, "backbone.patch_size": 2, "backbone.buffer": 4}, _COARSE, prior="p4"),
            },
        ),
        "finish": Stage(
            share=0.115,
            runs={
                "c16d": Run(None, _DECODER, continues=("c16",)),
                "c16e": Run(None, _DECODER | _HARDER, continues=("c16d",)),
                "c16f": Run(None, _DECODER | _HARDER | _HARDEST, continues=("c16e",)),
                "longer": Run(
                    None,
                    {"ti_mix": {"schedule": "constant"}, "training.learning_rate": 3.0e-4},
                    continues=("m8", "m8s", "m8c8", "m8w", "m4"),
                ),
                "timix": Run(
                    None,
                    {
                        "ti_mix": {"schedule": "linear", "begin": 0.0, "end": 0.5},
                        "training.learning_rate": 3.0e-4,
                    },
                    continues=("m8", "m8s", "m8c8", "m8w", "m4"),
                ),
            },
        ),
    },
)
FAMILIES = {"emoji64": EMOJI64}
