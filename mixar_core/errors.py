"""The one exception for what a user can put right."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Bad input: one line saying what is wrong, where, and what is allowed.

    The command line prints it without a traceback and exits with code 2.

    Where several processes share the work and all stop for the same reason, `reported` is True in all but the main
    one, so that it is printed once.
    """

    def __init__(self, message: str, *, reported: bool = False) -> None:
        super().__init__(message)
        self.reported = reported


@contextmanager
def said_of(where: str) -> Iterator[None]:
    """Begin the message of a UserError that is raised inside with where that is."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
