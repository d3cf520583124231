"""The models of the page and what is computed with them: pictures drawn, compared and edited, and stopped."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
import torch
from PIL import Image

from mixar.editing import Edited
from mixar.folder import RECIPE, sha256
from mixar.generation import Generation
from mixar.model import Model, load
from mixar.plugins import Registry
from mixar.recipe import Recipe, load_recipe
from mixar.regions import make_canvas, shaded
from mixar.registry import PRESETS
from mixar.sampling import Plan, describe, sampling_as
from mixar_core.errors import UserError
from mixar_core.pictures import to_pil
from mixar_core.types import Grid
from mixar_page.again import Again, again, noted
from mixar_page.asked import Drawing, Editing, Way

#: pictures of the steps that are shown at most: of more, as many that lie evenly among them
STEPS_SHOWN = 32


class Stopped(Exception):
    """The visitor has stopped it, or is gone."""


@attrs.frozen(eq=False)
class Watch:
    """How a computation tells how far it is, and learns between two steps that nobody waits for it any more."""

    report: Callable[[int, int], object] = lambda done, of: None
    stop: threading.Event = attrs.field(factory=threading.Event)

    def __call__(self, done: int, of: int) -> None:
        """What `Model.generate` and `Model.edit` call after every step."""
        self.check()
        self.report(done, of)

    def check(self) -> None:
        """Raise Stopped where it is."""
        if self.stop.is_set():
            raise Stopped


@attrs.frozen(eq=False)
class Drawn:
    """One picture.

    Args:
        picture: in the model's size, with `info` that says how it was made; saved as PNG it keeps that.
        name: of its class. facts: a line on it.
        again: how to make it again.
        alone: what its codes alone decode to; None where there are none.
        steps: the number of a step, and what it looked like after it; empty where nothing is drawn step by step, or
            nobody asks. Of many those that lie evenly among them; the last is the picture.
    """

    asked: Drawing | Editing
    picture: Image.Image
    name: str
    again: Again
    facts: str
    alone: Image.Image | None = None
    steps: Sequence[tuple[int, Image.Image]] = ()


@attrs.frozen(eq=False)
class Redrawn(Drawn):
    """A picture of which a region was drawn anew.

    Args:
        region: the picture with what was painted, and the whole tokens that this grew to.
        report: what was drawn anew, and its seam, a line each.
    """

    region: Image.Image = attrs.field(kw_only=True)
    report: Sequence[str] = attrs.field(kw_only=True)


@attrs.frozen(eq=False)
class Studio:
    """Models that are loaded, each used by one computation at a time.

    Args:
        settings: what `mixar.load` is told of every model.
        own: the models as they are, by the names that they were asked for with.
    """

    settings: Mapping[str, Any]
    own: Mapping[str, Model]
    locks: Mapping[str, threading.Lock] = attrs.field(
        default=attrs.Factory(lambda self: {name: threading.Lock() for name in self.own}, takes_self=True)
    )

    @classmethod
    def of(cls, names: Sequence[str], registry: Registry, **settings: Any) -> Studio:
        """Load these models.

        Raises:
            UserError: as `mixar.load`; or one is given twice, or draws no images.
        """
        for twice in (name for name in names if names.count(name) > 1):
            raise UserError(f"{twice}: is given twice")
        settings["registry"] = registry
        own = {name: load(name, **settings) for name in names}
        for name, model in own.items():
            if model.system.model is None and model.system.prior is None:
                raise UserError(f"model {name}: draws no images; it trains {model.recipe.trains}")
        return cls(settings, own)

    def model(self, way: Way) -> Model:
        """The model that samples in this way, by the weights of `own`; only who holds its lock may draw with it.

        Raises:
            UserError: it is none of the page's, or there is no such preset, or not for it.
        """
        own = self._own(way)
        return own if way.preset is None else sampling_as(own, self._recipe(way), self.settings["registry"])

    def presets(self, name: str) -> list[str]:
        """Ways of sampling that are there for a model: its own first."""
        registry: Registry = self.settings["registry"]
        own = sorted(file.stem for file in (registry.find_model(name) / PRESETS).glob("*.yaml"))
        return list(dict.fromkeys([*own, *registry.presets()]))

    def given(self, way: Way) -> dict[str, float | None]:
        """Steps, cfg and temperature of a model's preset: what is drawn with where nothing else is said.

        Raises:
            UserError: as `model`.
        """
        return self._own(way).given(self._recipe(way).sampling)

    def _recipe(self, way: Way) -> Recipe:
        """The model's recipe, with what the preset says."""
        if way.preset is None:
            return self._own(way).recipe
        registry: Registry = self.settings["registry"]
        return load_recipe(registry.find_model(way.model) / RECIPE, {"preset": way.preset}, registry=registry)

    def _own(self, way: Way) -> Model:
        if way.model not in self.own:
            raise UserError(f"model {way.model!r}: not on this page; there are {', '.join(self.own)}")
        if way.preset is not None and way.preset not in self.presets(way.model):
            raise UserError(
                f"preset {way.preset!r}: there is none of that name; there are {', '.join(self.presets(way.model))}"
            )
        return self.own[way.model]

    @contextmanager
    def using(self, way: Way, watch: Watch) -> Iterator[Model]:
        """The model, for oneself."""
        self._own(way)
        lock = self.locks[way.model]
        while not lock.acquire(timeout=0.2):
            watch.check()
        try:
            watch.check()
            yield self.model(way)
        finally:
            lock.release()


def draw(studio: Studio, asked: Drawing, watch: Watch, *, keep_steps: bool = False) -> Drawn:
    """One picture, and what its codes alone decode to.

    Raises:
        UserError: what is asked for is not there, or the model cannot. Stopped: between two steps.
    """
    with studio.using(asked.way, watch) as model:
        began = time.monotonic()
        keep = keep_steps and model.system.model is not None
        codes = None if asked.codes is None else torch.tensor([asked.codes])
        found = model.generate(
            asked.label, seed=asked.seed, codes=codes, keep_steps=keep, progress=watch, **asked.way.changes
        )
        took = time.monotonic() - began
        alone = None
        if found.codes is not None and model.system.model is not None:
            alone = to_pil(model.decode_codes(found.codes)[0])
        how, facts = again(asked, model), describe(model, _plan(model, asked, "both"))
        facts |= {} if asked.codes is None else {"codes": [asked.codes]}
        return Drawn(
            asked,
            noted(to_pil(found.images[0]), how, facts),
            found.names[0],
            how,
            f"{found.names[0]} · seed {asked.seed} · {took:.1f} s",
            alone,
            _shown(found),
        )


def compare(studio: Studio, drawing: Drawing, other: Way, watch: Watch) -> tuple[Drawn, Drawn]:
    """The same codes and the same noise in two ways: models, or presets of one. One that takes no codes draws without.

    Raises:
        UserError: as `draw`; or the two understand codes differently.
    """
    with studio.using(drawing.way, watch) as model:
        left, name = _reads(model), model.recipe.name
        codes = model.sample_codes(drawing.label, seed=drawing.seed)[0] if left else None
    with studio.using(other, watch) as model:
        right = _reads(model)
        if codes is not None and right and left != right:
            raise UserError(
                f"{name} and {model.recipe.name} read codes with different tokenizers, so they cannot draw from the "
                "same ones: choose two ways of one model"
            )
    found = []
    for way, reads in ((drawing.way, left), (other, right)):
        given = None if codes is None or not reads else tuple(codes.tolist())
        asked = attrs.evolve(drawing, way=way, codes=given, codes_by=drawing.way if given else None)
        found.append(draw(studio, asked, watch))
    return found[0], found[1]


def edit(studio: Studio, asked: Editing, watch: Watch) -> Redrawn:
    """A region of a picture drawn anew.

    Raises:
        UserError: as `Model.edit`. Stopped: between two steps.
    """
    with studio.using(asked.way, watch) as model:
        began = time.monotonic()
        found = model.edit(
            asked.picture,
            asked.mask,
            asked.label,
            level=asked.level,
            peek=asked.peek,
            seed=asked.seed,
            progress=watch,
            **asked.way.changes,
        )
        how = again(asked, model)
        plan = _plan(model, asked, found.level)
        facts = describe(model, plan) | {"edit": {"level": found.level, "peek": asked.peek, "seam": found.figures()}}
        return Redrawn(
            asked,
            noted(to_pil(found.images[0]), how, facts),
            found.names[0],
            how,
            f"{found.names[0]} · seed {asked.seed} · {time.monotonic() - began:.1f} s",
            region=to_pil(_marked(found)),
            report=found.report(),
        )


def fitted(model: Model, picture: Image.Image) -> Image.Image:
    """A picture in the model's size, as training images are brought into theirs."""
    return to_pil(make_canvas(picture, None, model.recipe.image_size).image_3HW)


def canvas(model: Model) -> dict[str, Any]:
    """What the page's canvas must know of a model: the size of its images, and of a token, in pixels."""
    size = Grid.of_pixels(model.recipe.image_size)
    system = model.system
    layout = system.model.backbone.layout if system.model else system.discrete_tokenizer.layout  # type: ignore[union-attr]
    grid = layout.scales[-1] if layout.kind != "sequence" else Grid(1, 1)
    return {"width": size.width, "height": size.height, "columns": grid.width, "rows": grid.height}


def _plan(model: Model, asked: Drawing | Editing, level: str) -> Plan:
    settings = model.settings(**asked.way.changes, of_prior=level == "codes")
    return Plan(count=1, batch=1, seed=asked.seed, settings=settings, classes=(asked.label,))


def _reads(model: Model) -> str:
    """What tells the codes that a model draws from: the discrete tokenizer's weights; nothing where it takes none."""
    mixar = model.system.model
    if mixar is None or not mixar.injector.needs_codes or model.system.discrete_tokenizer is None:
        return ""
    file = model.files.get("discrete_tokenizer")
    return str(model.recipe.discrete_tokenizer) if file is None else sha256(file)


def _shown(found: Generation) -> list[tuple[int, Image.Image]]:
    count = 0 if found.steps is None else len(found.steps)
    shown = min(count, STEPS_SHOWN)
    numbers = [round(k * (count - 1) / max(shown - 1, 1)) for k in range(shown)]
    return [(at + 1, to_pil(found.steps[at, 0])) for at in numbers if found.steps is not None]


def _marked(found: Edited) -> torch.Tensor:
    return shaded(found.originals, found.masks, found.regions)[0]
