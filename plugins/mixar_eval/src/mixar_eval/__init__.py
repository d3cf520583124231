"""Measuring images: distances, scores, reports; `mixar.evaluate` and the commands `mixar eval ...`."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from mixar import Part, hookimpl

if TYPE_CHECKING:
    import typer

    from mixar_eval.evaluate import evaluate as evaluate
    from mixar_eval.report import Report as Report

#: the version of mixar's interface that this was written for
MIXAR_INTERFACE = 2

__all__ = ["Report", "evaluate"]


def __getattr__(name: str) -> Any:
    """`evaluate` and `Report`, imported when they are first used: `mixar --help` loads every plugin."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"mixar_eval.{name.lower()}"), name)


@hookimpl
def mixar_evaluate() -> Callable[..., Any]:
    """What `mixar.evaluate` does."""
    from mixar_eval.evaluate import evaluate

    return evaluate


@hookimpl
def mixar_parts() -> list[Part]:
    """The extractor that published figures are measured with."""
    from mixar_eval.inception import Inception, InceptionConfig

    return [Part("extractor", "inception", Inception, InceptionConfig)]


@hookimpl
def mixar_commands(app: typer.Typer) -> None:
    """`mixar eval ...`, `mixar tune` and `mixar bench`."""
    from mixar_eval.cli import eval_app
    from mixar_eval.cli_bench import bench_command
    from mixar_eval.cli_tune import tune_command

    app.add_typer(eval_app, name="eval")
    app.command("tune")(tune_command)
    app.command("bench")(bench_command)
