"""Laws are checked on the same examples every time, however slow the machine."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("same-examples", derandomize=True, deadline=None)
settings.load_profile("same-examples")
