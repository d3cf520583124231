"""The candidates of a family, as data: what each run changes in which recipe, and what it waits for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attrs import evolve, field, frozen


@frozen
class Run:
    """A training.

    Args:
        base: the recipe that it changes; None: that of the run it continues.
        changes: of the recipe, by dotted keys; without steps it takes as many as fit its stage.
        frozen: runs that give its frozen parts, by recipe key; of several the best by what was measured.
        continues: runs of which the best is where it begins, with that one's recipe and prior.
        prior: the run whose codes a MixAR draws from when it is measured; it may be trained at the same time.
    """

    base: str | None
    changes: Mapping[str, Any] = field(factory=dict)
    frozen: Mapping[str, tuple[str, ...]] = field(factory=dict)
    continues: tuple[str, ...] = ()
    prior: str | None = None


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
        return self._with(lambda runs: {name: run for name, run in runs.items() if name in names})

    def quick(self) -> Family:
        """The same runs in sizes and steps of nearly nothing, to see that all of it goes through.

        The first of a stage finds out as usual how many steps fit.
        """

        def small(runs: Mapping[str, Run]) -> dict[str, Run]:
            tiny = {name: {**run.changes, **_tiny(run)} for name, run in runs.items()}
            steps = {name: {"training.steps": 16} for name in [*runs][1:]}
            return {name: evolve(run, changes=tiny[name] | steps.get(name, {})) for name, run in runs.items()}

        return self._with(small)

    def _with(self, changed: Callable[[Mapping[str, Run]], Mapping[str, Run]]) -> Family:
        return evolve(self, stages={name: evolve(s, runs=changed(s.runs)) for name, s in self.stages.items()})


def _tiny(run: Run) -> dict[str, Any]:
    small = {"channels": 8, "blocks": 1}
    backbone, head = {"width": 64, "depth": 1}, {"width": 32, "depth": 1, "sampling_steps": 4}
    kinds: dict[str | None, dict[str, Any]] = {
        "emoji64_continuous": {"continuous_tokenizer": small, "extractor.maps_scale": 1},
        "emoji64_lfq": {"discrete_tokenizer": small, "extractor.maps_scale": 1, "discriminator.channels": 8},
        "emoji64_prior": {"prior": {"width": 32, "depth": 1, "mlp_dim": 32, "steps": 4}},
        "emoji64": {"backbone": backbone, "head": head, "sampling.steps": 2},
    }
    sizes = {"training.batch_size": 4, "training.evaluate_batches": 1, "training.flip": False}
    return {**sizes, **kinds.get(run.base, {})}


#: late: a tokenizer that does not reconstruct yet loses by it (docs/results/tokenizer-losses.md)
_ADVERSARIAL = {
    "discriminator": {"type": "patchgan", "channels": 64, "layers": 2},
    "adversarial": {"weight": 0.3, "adaptive": True, "lecam_weight": 0.001},
    "training.betas": [0.5, 0.95],
    "reconstruction.perceptual_weight": 0.5,
}
#: priors and MixARs are measured by the same sampling, whatever the recipes were tuned to
_PRIOR = {"prior.steps": 32, "prior.guidance_scale": 1.5, "prior.randomize_temperature": 3.0}
_MIXAR = {"prior": None, "sampling.steps": 8, "sampling.cfg": 2.0, "sampling.temperature": 0.8}
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
_HARDER = _DECODER | {
    "reconstruction.reconstruction_weight": 10.0,
    "reconstruction.statistics_images": 64,
    "training.steps": 400,
    "training.learning_rate": 4.0e-4,
}
_HARDEST = _HARDER | {"reconstruction.reconstruction_weight": 30.0, "training.steps": 450}
_LAST = _HARDEST | {"training.batch_size": 48, "training.ema_decay": 0.995, "training.steps": 4665}
_SUBCATEGORIES = {"num_classes": 107, "data.subcategories": True}
_COARSE = {"discrete_tokenizer.channel_multipliers": [1, 2, 4, 4, 8], "discrete_tokenizer.bits": 14}
_OVER_COARSE = {"prior.bits": 14, "prior.stride": 16, "prior.steps": 16, "prior.randomize_temperature": 1.5}
_LONGER: dict[str, Any] = {"training.learning_rate": 3.0e-4}
_TI_MIX = {"ti_mix": {"schedule": "linear", "begin": 0.0, "end": 0.5}}
_PATCHES = {"backbone.patch_size": 2, "backbone.buffer": 4}
#: frozen parts: of these runs the best
_D8: dict[str, tuple[str, ...]] = {"discrete_tokenizer": ("d8", "d8g")}
_D4: dict[str, tuple[str, ...]] = {"discrete_tokenizer": ("d4",)}
_C16: dict[str, tuple[str, ...]] = {"continuous_tokenizer": ("c16", "c16a", "c16g")}
_C8: dict[str, tuple[str, ...]] = {"continuous_tokenizer": ("c8a",)}
_MIXARS = ("m8", "m8s", "m8c8", "m8w", "m4")

EMOJI64 = Family(
    data="emoji64",
    image_size=64,
    categories=9,
    stages={
        "tokenizers": Stage(
            share=0.50,
            runs={
                "c16": Run("emoji64_continuous"),
                "c16a": Run("emoji64_continuous", _ADVERSARIAL),
                "c16g": Run("emoji64_continuous", {**_ADVERSARIAL, "continuous_tokenizer.norm": "group"}),
                "c8a": Run("emoji64_continuous", {**_ADVERSARIAL, "continuous_tokenizer.latent_channels": 8}),
                "d8": Run("emoji64_lfq"),
                "d8g": Run("emoji64_lfq", {"discrete_tokenizer.norm": "group"}),
                "d4": Run("emoji64_lfq", _COARSE),
            },
        ),
        "models": Stage(
            share=0.30,
            runs={
                "p8": Run("emoji64_prior", _PRIOR, _D8),
                "p8d": Run("emoji64_prior", {**_PRIOR, "prior.dropout": 0.3, "training.flip": False}, _D8),
                "p8s": Run("emoji64_prior", {**_PRIOR, **_SUBCATEGORIES}, _D8),
                "p4": Run("emoji64_prior", {**_PRIOR, **_OVER_COARSE}, _D4),
                "m8": Run("emoji64", _MIXAR, _C16 | _D8, prior="p8"),
                "m8s": Run("emoji64", {**_MIXAR, **_SUBCATEGORIES}, _C16 | _D8, prior="p8s"),
                "m8c8": Run("emoji64", _MIXAR, _C8 | _D8, prior="p8"),
                "m8w": Run("emoji64", {**_MIXAR, "head.width": 512, "head.depth": 6}, _C16 | _D8, prior="p8"),
                "m4": Run("emoji64", {**_MIXAR, **_PATCHES}, _C16 | _D4, prior="p4"),
            },
        ),
        "finish": Stage(
            share=0.115,
            runs={
                "c16d": Run(None, _DECODER, continues=("c16",)),
                "c16e": Run(None, _HARDER, continues=("c16d",)),
                "c16f": Run(None, _HARDEST, continues=("c16e",)),
                "c16h": Run(None, _LAST, continues=("c16f",)),
                "m8f": Run(None, {"training.steps": 1900}, continues=("m8",)),
                "m8g": Run(None, {"training.steps": 1785, "training.learning_rate": 6.0e-4}, continues=("m8f",)),
                "longer": Run(None, _LONGER, continues=_MIXARS),
                "timix": Run(None, _LONGER | _TI_MIX, continues=_MIXARS),
            },
        ),
    },
)
FAMILIES = {"emoji64": EMOJI64}
