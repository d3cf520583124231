"""What is not trained of what a recipe trains."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from mixar_core.errors import UserError


def freeze(module: nn.Module, entries: Collection[str]) -> None:
    """Let parameters stay as they are that an entry means: by name, or by that of a module that they are in.

    Raises:
        UserError: an entry means none, or no parameter is left to train.
    """
    parameters = dict(module.named_parameters())
    for entry in entries:
        met = [parameter for name, parameter in parameters.items() if name == entry or name.startswith(f"{entry}.")]
        if not met:
            parts = ", ".join(name for name, _ in module.named_children())
            raise UserError(f"{entry}: no parameter's name begins so; what is trained has {parts}, and what is in them")
        for parameter in met:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise UserError("leaves nothing to train")
