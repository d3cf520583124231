"""The page: three tabs in a frame. What they compute stands in `studio`, what they show in `show`."""

from __future__ import annotations

import gradio as gr

from mixar_page.compare_tab import CompareTab
from mixar_page.draw_tab import DrawTab
from mixar_page.edit_tab import EditTab
from mixar_page.studio import Studio
from mixar_page.visits import Visits

#: visitors that may wait before another is turned away
QUEUE = 16
TITLE = "<h1>mixar</h1><p>Discrete codes say what is where; MixAR paints the picture.</p>"


def build(stage: Studio) -> gr.Blocks:
    """The page of these models, with a queue."""
    visits = Visits()
    with gr.Blocks(title="mixar", analytics_enabled=False) as page:
        gr.HTML(TITLE, elem_id="title", js_on_load=None)
        with gr.Tabs() as tabs:
            with gr.Tab("Draw", id="draw"):
                draw = DrawTab.of(stage, visits)
            with gr.Tab("Edit", id="edit"):
                edit = EditTab.of(stage, visits)
            with gr.Tab("Compare", id="compare"):
                CompareTab.of(stage, visits)
        edit.takes(draw, tabs)
        page.unload(visits.stop)
    return page.queue(max_size=QUEUE, api_open=False, default_concurrency_limit=len(stage.own))
