"""The first tab: a picture, what its codes alone show, its steps, and others of its kind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import gradio as gr

from mixar_page import asked, show, studio
from mixar_page.asked import Drawing, Way
from mixar_page.controls import (
    AT_ONCE,
    FIRST_SEED,
    IN_TURN,
    NEXT_SEED,
    PROGRESS,
    How,
    classes_of,
    label_of,
    model_of,
    seed,
)
from mixar_page.studio import Drawn, Studio, Watch
from mixar_page.visits import Visits

#: a press on a small picture chooses its seed
_CHOOSE = """element.addEventListener("click", event => {
  const chosen = event.target.closest("[data-seed]");
  if (chosen) trigger("select", {seed: Number(chosen.dataset.seed)});
});"""


@attrs.frozen(eq=False)
class DrawTab:
    """Its fields, and what happens to them."""

    stage: Studio
    visits: Visits
    model: Any
    label: Any
    to_edit: Any
    how: How

    @classmethod
    def of(cls, stage: Studio, visits: Visits) -> DrawTab:
        """The tab, where this is called; its first picture is there."""
        first = next(iter(stage.own))
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                model, label = model_of(stage), label_of(stage, first)
                number = seed()
                go = gr.Button("Draw", variant="primary", size="lg", elem_id="draw-go")
                another = gr.Button("Another one", elem_id="draw-another")
                vary = gr.Button("Variations", elem_id="draw-vary")
                stop = gr.Button("Stop", variant="stop", size="sm", elem_id="draw-stop")
                how, count = How.below(stage, model, _count)
            with gr.Column(scale=5):
                start = studio.draw(
                    stage,
                    Drawing(Way(first), classes_of(stage, first)[0][1], FIRST_SEED),
                    Watch(),
                    keep_steps=True,
                )
                picture = gr.HTML(show.drawing(start), elem_id="drawn", js_on_load=None)
                to_edit = gr.Button("Edit this picture", elem_id="to-edit")
                strip = gr.HTML("", elem_id="strip", js_on_load=_CHOOSE)
        tab = cls(stage, visits, model, label, to_edit, how)
        fields = [model, label, *how.fields]
        events = [
            go.click(tab.on_draw, [number, *fields], picture, **IN_TURN),
            another.click(None, number, number, js=NEXT_SEED).then(tab.on_draw, [number, *fields], picture, **IN_TURN),
            vary.click(tab.on_vary, [count, number, *fields], strip, **IN_TURN),
            strip.select(tab.on_choose, fields, [number, picture], **IN_TURN),
        ]
        stop.click(visits.stop, cancels=events, **AT_ONCE)
        model.change(lambda name: label_of(stage, name), model, label, **AT_ONCE)
        return tab

    def asked(self, number: Any, model: Any, label: Any, *how: Any) -> Drawing:
        """What the fields ask for."""
        return Drawing(self.how.way(model, *how), asked.label_of(label), asked.seed_of(number))

    def on_draw(self, request: gr.Request, progress: Any = PROGRESS, *values: Any) -> str:
        """One picture."""
        with self.visits.watching(request, progress) as watch:
            return show.drawing(studio.draw(self.stage, self.asked(*values), watch, keep_steps=True))

    def on_vary(
        self,
        request: gr.Request,
        progress: Any = PROGRESS,
        count: Any = 1,
        *values: Any,
    ) -> Iterator[str]:
        """The same with the seeds that follow, one after the other."""
        found: list[Drawn] = []
        with self.visits.watching(request, progress) as watch:
            one = self.asked(*values)
            for more in range(1, asked.count_of(count) + 1):
                found.append(studio.draw(self.stage, attrs.evolve(one, seed=(one.seed + more) % asked.SEEDS), watch))
                yield show.strip(found)

    def on_choose(
        self,
        request: gr.Request,
        event: gr.EventData,
        progress: Any = PROGRESS,
        *values: Any,
    ) -> tuple[int, str]:
        """One of the small pictures, large."""
        with self.visits.watching(request, progress) as watch:
            one = self.asked(asked.sent(event, "seed"), *values)
            return one.seed, show.drawing(studio.draw(self.stage, one, watch, keep_steps=True))


def _count() -> gr.Number:
    return gr.Number(6, label=f"Variations (up to {asked.MOST_PICTURES})", min_width=90)
