"""The one exception for what a user can put right."""

from __future__ import annotations


class UserError(Exception):
    """Bad input: one line saying what is wrong, where, and what is allowed.

    The command line prints it without a traceback and exits with code 2.
    """
