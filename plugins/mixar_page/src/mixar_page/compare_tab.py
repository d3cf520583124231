"""The third tab: two models, or two ways of sampling, from the same codes and the same noise."""

from __future__ import annotations

from typing import Any

import attrs
import gradio as gr

from mixar_page import asked, show, studio
from mixar_page.asked import Drawing
from mixar_page.controls import AT_ONCE, IN_TURN, PROGRESS, label_of, model_of, preset_of, seed
from mixar_page.studio import Studio
from mixar_page.visits import Visits

#: what is compared with the model's own way, where there is such a preset
_OTHER = "one-shot"


@attrs.frozen(eq=False)
class CompareTab:
    """What happens in it."""

    stage: Studio
    visits: Visits

    @classmethod
    def of(cls, stage: Studio, visits: Visits) -> CompareTab:
        """The tab, where this is called."""
        tab, first = cls(stage, visits), next(iter(stage.own))
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                label, number = label_of(stage, first), seed()
                with gr.Row():
                    model, preset = model_of(stage), preset_of(stage, first, "drawn")
                with gr.Row():
                    other_model, other = model_of(stage, "Beside it", elem_id="other-model"), tab.other(first)
                go = gr.Button("Compare", variant="primary", size="lg", elem_id="compare-go")
                stop = gr.Button("Stop", variant="stop", size="sm", elem_id="compare-stop")
            with gr.Column(scale=5):
                result = gr.HTML(show.EMPTY, elem_id="compared", js_on_load=None)
        fields = [model, preset, label, number, other_model, other]
        stop.click(visits.stop, cancels=[go.click(tab.on_compare, fields, result, **IN_TURN)], **AT_ONCE)
        model.input(tab.on_model, model, [preset, label, other_model, other], **AT_ONCE)
        other_model.input(tab.other, other_model, other, **AT_ONCE)
        return tab

    def on_compare(self, request: gr.Request, progress: Any = PROGRESS, *values: Any) -> str:
        """Both pictures."""
        model, preset, label, number, other_model, other = values
        with self.visits.watching(request, progress) as watch:
            one = Drawing(asked.way_of(model, preset), asked.label_of(label), asked.seed_of(number))
            return show.comparing(studio.compare(self.stage, one, asked.way_of(other_model, other), watch))

    def on_model(self, model: str) -> tuple[Any, ...]:
        """Another model: its presets and classes, and itself in another way beside it."""
        return preset_of(self.stage, model), label_of(self.stage, model), gr.Dropdown(value=model), self.other(model)

    def other(self, model: str) -> gr.Dropdown:
        """The field of the other way of sampling."""
        value = _OTHER if _OTHER in self.stage.presets(model) else ""
        return preset_of(self.stage, model, "drawn", value)
