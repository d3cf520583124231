"""The second tab: a region of a picture, painted by hand, drawn anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import gradio as gr

from mixar_page import asked, show, studio
from mixar_page.again import url
from mixar_page.asked import Editing
from mixar_page.controls import AT_ONCE, IN_TURN, NEXT_SEED, PROGRESS, How, classes_of, label_of, model_of, seed
from mixar_page.studio import Studio
from mixar_page.visits import Visits, told

_STATIC = Path(__file__).parent / "static"
#: what is sent of the canvas: what is on it now
_SENT = "(canvas, ...rest) => [window.mixarPaint(), ...rest]"
#: the picture of a result, as the page shows it
_RESULT = "document.querySelector('#{} img.main')?.src ?? null"


@attrs.frozen(eq=False)
class EditTab:
    """Its fields, and what happens to them."""

    stage: Studio
    visits: Visits
    model: Any
    label: Any
    canvas: Any
    how: How

    @classmethod
    def of(cls, stage: Studio, visits: Visits) -> EditTab:
        """The tab, where this is called."""
        first = next(iter(stage.own))
        with gr.Row():
            with gr.Column(scale=4, min_width=380):
                canvas = gr.HTML(
                    show.painting(studio.canvas(stage.own[first])),
                    html_template=(_STATIC / "paint.html").read_text(encoding="utf-8"),
                    js_on_load=(_STATIC / "paint.js").read_text(encoding="utf-8"),
                    elem_id="paint",
                )
            with gr.Column(scale=5):
                with gr.Row():
                    model, label, number = model_of(stage), label_of(stage, first), seed()
                with gr.Row():
                    codes = gr.Radio(["redraw", "keep"], value="redraw", label="Codes: what is where")
                    latents = gr.Radio(["redraw", "keep"], value="redraw", label="Latents: how it is painted")
                with gr.Row():
                    go = gr.Button("Redraw", variant="primary", elem_id="edit-go")
                    another = gr.Button("Another one", elem_id="edit-another")
                    stop = gr.Button("Stop", variant="stop", elem_id="edit-stop")
                result = gr.HTML(show.EMPTY, elem_id="edited", js_on_load=None)
                again = gr.Button("Go on with this picture", size="sm", elem_id="edit-again")
                how, peek = How.below(stage, model, _peek)
        tab = cls(stage, visits, model, label, canvas, how)
        fields = [canvas, number, latents, codes, peek, model, label, *how.fields]
        events = [
            go.click(tab.on_edit, fields, result, js=_SENT, **IN_TURN),
            another.click(None, number, number, js=NEXT_SEED).then(tab.on_edit, fields, result, js=_SENT, **IN_TURN),
        ]
        stop.click(visits.stop, cancels=events, **AT_ONCE)
        canvas.upload(tab.on_open, model, canvas, **AT_ONCE)
        again.click(tab.on_take, [result, model], canvas, js=f"(r, m) => [{_RESULT.format('edited')}, m]", **AT_ONCE)
        model.input(tab.on_model, model, [canvas, label], **AT_ONCE)
        return tab

    def takes(self, picture_tab: Any, tabs: gr.Tabs) -> None:
        """A press on a button of the first tab brings its picture, its model and its class here."""
        picture_tab.to_edit.click(
            lambda picture, model, label: (
                gr.Tabs(selected="edit"),
                self.on_take(picture, model),
                gr.Dropdown(value=model),
                gr.Dropdown(choices=classes_of(self.stage, model), value=label),
            ),
            [self.canvas, picture_tab.model, picture_tab.label],
            [tabs, self.canvas, self.model, self.label],
            js=f"(c, ...rest) => [{_RESULT.format('drawn')}, ...rest]",
            **AT_ONCE,
        )

    def on_edit(
        self,
        request: gr.Request,
        progress: Any = PROGRESS,
        *values: Any,
    ) -> str:
        """The region drawn anew."""
        painted, number, latents, codes, peek, model, label, *how = values
        with self.visits.watching(request, progress) as watch:
            way, level = self.how.way(model, *how), asked.level_of(latents, codes)
            picture, mask = asked.painted(painted)
            one = Editing(way, asked.label_of(label), asked.seed_of(number), level, picture, mask, peek is True)
            return show.editing(studio.edit(self.stage, one, watch))

    def on_open(self, event: gr.EventData, model: Any) -> str:
        """A picture of the visitor's own, in the model's size."""
        return self.on_take(asked.sent(event, "picture"), model)

    def on_take(self, picture: Any, model: Any) -> str:
        """A picture onto the canvas."""
        with told():
            own = self.stage.model(asked.way_of(model))
            return show.painting(studio.canvas(own), url(studio.fitted(own, asked.picture_of(picture))))

    def on_model(self, model: str) -> tuple[str, gr.Dropdown]:
        """Another model: an empty canvas of its size, and its classes."""
        return show.painting(studio.canvas(self.stage.own[model])), label_of(self.stage, model)


def _peek() -> gr.Checkbox:
    return gr.Checkbox(False, label="Let the encoders see what the region held: the result is then more like it")
