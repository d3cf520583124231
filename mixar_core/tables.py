"""Tables: learned tensors with a row for each class, or for each token."""

from __future__ import annotations

from attrs import frozen

from mixar_core.types import TokenLayout


@frozen
class Table:
    """Where a tensor has its rows, so that a run may start from a model with other classes or more tokens.

    A backbone, prior, injector or head that has tables says so in a method `learned_tables()`: one by each tensor's
    name in its state dict.

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
