"""Shows that loops are compiled at their first use, which Numba does in silence for up to half a minute."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

STEP = "compile, the first time only"


@contextmanager
def shown(progress: Callable[[str, int, int], None]) -> Iterator[None]:
    """Report to ``progress`` each loop that is compiled meanwhile; nothing for code that is there already."""
    events = sys.modules.get("numba.core.event")
    if events is None:
        # the verb needs no Numba, and importing it here would take a while itself
        yield
        return
    with events.install_listener("numba:compile", _listener(events.Listener, progress)):
        yield


def _listener(base: Any, progress: Callable[[str, int, int], None]) -> Any:
    # one loop compiles those that it calls: the last to end is the first that began
    counts = {"begun": 0, "ended": 0}

    def told(what: str) -> None:
        counts[what] += 1
        progress(STEP, counts["ended"], counts["begun"])

    methods = {"on_start": lambda _self, _event: told("begun"), "on_end": lambda _self, _event: told("ended")}
    return type("Told", (base,), methods)()
