"""What a prior may be told by its settings, and asked for when it draws."""

from __future__ import annotations

from attrs import validators

from mixar_core.errors import UserError

positive = validators.ge(1)
count = validators.ge(0)
not_negative = validators.ge(0.0)
share = validators.and_(validators.ge(0.0), validators.lt(1.0))
up_to_one = validators.and_(validators.gt(0.0), validators.le(1.0))


def check_asked(steps: int | None, temperature: float | None) -> None:
    """See that there are steps and no negative temperature; None: not asked for.

    Raises:
        UserError: less than 1 step, or a negative temperature.
    """
    if steps is not None and steps < 1:
        raise UserError(f"the prior's steps are {steps}; 1 or more are needed")
    if temperature is not None and temperature < 0:
        raise UserError(f"the prior's temperature is {temperature}; it must be 0 or more")
