"""For all tests: hypothesis without deadlines, because a busy machine is not a failure."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("mixar", deadline=None)
settings.load_profile("mixar")
