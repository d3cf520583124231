"""Measuring images: distances, scores, reports; `mixar.evaluate` and the commands `mixar eval ...`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mixar import Part, hookimpl

if TYPE_CHECKING:
    import typer


@hookimpl
def mixar_parts() -> list[Part]:
    """The extractors that published figures are measured with."""
    from mixar_eval.extractor_parts.inception import Inception, InceptionConfig
    from mixar_eval.extractor_parts.timm_model import TimmConfig, TimmExtractor

    return [
        Part("extractor", "inception", Inception, InceptionConfig),
        Part("extractor", "timm", TimmExtractor, TimmConfig),
    ]


@hookimpl
def mixar_commands(app: typer.Typer) -> None:
    """`mixar eval ...`."""
    from mixar_eval.cli.eval import eval_app

    app.add_typer(eval_app, name="eval")
