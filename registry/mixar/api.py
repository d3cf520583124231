"""`mixar.evaluate`, which a package of its own brings."""

from __future__ import annotations

from typing import Any

from mixar.plugins import load_plugins
from mixar_core.distributed import refuse_while_starting
from mixar_core.errors import UserError


def evaluate(*args: Any, **kwargs: Any) -> Any:
    """Measure images against a reference: `mixar_eval.evaluate`, which comes with the package mixar-eval.

    Raises:
        UserError: that package is not installed, or this is a worker process that is still being started.
    """
    refuse_while_starting()
    manager, _ = load_plugins()
    function = manager.hook.mixar_evaluate()
    if function is None:
        raise UserError(
            "mixar.evaluate comes with the package mixar-eval, which is not installed; in a checkout: "
            "pip install ./plugins/mixar_eval"
        )
    return function(*args, **kwargs)
