"""Tables: learned tensors with a row for each class, or for each token, so that training can start from other ones.

A backbone, prior, injector or head that has some says so in a method `learned_tables()`: a Table by each tensor's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from attrs import frozen
from torch import nn

from mixar_core.types import TokenLayout


@frozen
class Table:
    """Where a tensor has its rows.

    Args:
        rows: how many classes there are, or where the tokens stand.
        dim: along which the rows are.
        first: index of the first class or token; what is before and behind them stands for something else.
    """

    rows: int | TokenLayout
    dim: int = 0
    first: int = 0

    @property
    def count(self) -> int:
        """Number of classes or tokens."""
        return self.rows if isinstance(self.rows, int) else self.rows.tokens


@runtime_checkable
class HasTables(Protocol):
    """A module with tables."""

    def learned_tables(self) -> Mapping[str, Table]:
        """Its own, by the tensors' names in its state dict."""


def tables_of(module: nn.Module) -> dict[str, Table]:
    """The tables of a module and of all in it, by name."""
    found = ((name, child.learned_tables()) for name, child in module.named_modules() if isinstance(child, HasTables))
    return {f"{prefix}.{name}" if prefix else name: table for prefix, each in found for name, table in each.items()}
