"""The controls that the tabs share: which model, which class, and how it is drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import gradio as gr

from mixar_core.types import NO_CLASS
from mixar_page import asked
from mixar_page.asked import Way
from mixar_page.studio import Studio
from mixar_page.visits import told

#: the first seed: of what is shown before anyone has pressed anything
FIRST_SEED = 1
#: a preset's place in a list where none is chosen
AS_IT_IS = ("as it is", "")
#: how a function of gradio asks for what tells how far it is
PROGRESS = gr.Progress()
#: what does not wait in the queue: it computes nothing
AT_ONCE: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
#: what does: one at a time for each model, which `Studio.using` sees to
IN_TURN: dict[str, Any] = {"concurrency_id": "models", "api_visibility": "private"}
#: of a button beside a seed: draw with the next one
NEXT_SEED = f"seed => (Number(seed) + 1) % {asked.SEEDS}"


def seed() -> gr.Number:
    """The seed's field. Bounds of numbers are `asked`'s: gradio's own would round, and say less."""
    return gr.Number(FIRST_SEED, label="Seed", min_width=100)


def model_of(stage: Studio, label: str = "Model", **settings: Any) -> gr.Dropdown:
    """The model's field; a page of one model shows none."""
    names = list(stage.own)
    return gr.Dropdown(names, value=names[0], label=label, visible=len(names) > 1, min_width=120, **settings)


def classes_of(stage: Studio, name: str) -> list[tuple[str, int]]:
    """A model's classes, each with its number; what is drawn without any comes last."""
    model = stage.own[name]
    names = model.class_names or tuple(map(str, range(model.recipe.num_classes)))
    return [*((each, number) for number, each in enumerate(names)), ("no class", NO_CLASS)]


def label_of(stage: Studio, name: str) -> gr.Dropdown:
    """The class's field, by names; with the model's own choices."""
    choices = classes_of(stage, name)
    return gr.Dropdown(choices, value=choices[0][1], label="What", visible=len(choices) > 1, min_width=160)


def preset_of(stage: Studio, name: str, label: str = "Preset", value: str = "") -> gr.Dropdown:
    """The field of ways of sampling."""
    return gr.Dropdown([AS_IT_IS, *stage.presets(name)], value=value, label=label, min_width=140)


@attrs.frozen(eq=False)
class How:
    """Fields that say how a picture is drawn, in a part of the page that opens; a new model brings new values.

    Args:
        fields: preset, steps, guidance, temperature.
    """

    stage: Studio
    model: gr.Dropdown
    fields: Sequence[Any]

    @classmethod
    def below(cls, stage: Studio, model: gr.Dropdown, more: Callable[[], Any] = lambda: None) -> tuple[How, Any]:
        """The fields, where this is called, and what `more` puts beside them."""
        with gr.Accordion("How it is drawn", open=False):
            preset = preset_of(stage, next(iter(stage.own)))
            numbers = _numbers(stage, Way(next(iter(stage.own))))
            extra = more()
        how = cls(stage, model, [preset, *numbers])
        preset.input(how.on_preset, [model, preset], numbers, **AT_ONCE)
        model.change(how.on_model, model, how.fields, **AT_ONCE)
        return how, extra

    def on_preset(self, model: Any, preset: Any) -> list[gr.Number]:
        """The numbers of another preset."""
        with told():
            return _numbers(self.stage, asked.way_of(model, preset))

    def on_model(self, model: str) -> list[Any]:
        """The fields of another model."""
        return [preset_of(self.stage, model), *_numbers(self.stage, Way(model))]

    def way(self, model: Any, preset: Any, steps: Any, cfg: Any, temperature: Any) -> Way:
        """What the fields say; a number that is the model's own is not said again.

        Raises:
            UserError: a value is not allowed.
        """
        way = asked.way_of(model, preset, steps, cfg, temperature)
        own = self.stage.given(Way(way.model, way.preset))
        same: dict[str, Any] = {key: None for key, value in way.changes.items() if value == own[key]}
        return attrs.evolve(way, **same)


def _numbers(stage: Studio, way: Way) -> list[gr.Number]:
    given = stage.given(way)
    titles = {"steps": "Steps", "cfg": "Guidance (1: none)", "temperature": "Temperature"}
    return [gr.Number(given[key], label=title, min_width=90) for key, title in titles.items()]
