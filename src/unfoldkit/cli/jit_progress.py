"""Show that loops are compiled at their first use, which Numba does silently for up to half a minute."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

STEP = "compile, the first time only"


@contextmanager
def report_compilation(progress: Callable[[str, int, int], None]) -> Iterator[None]:
    """Report to ``progress`` each loop that is compiled meanwhile; nothing for code that is cached."""
    events = sys.modules.get("numba.core.event")
    if events is None:
        # the verb does not use Numba, and importing it here would take a while itself
        yield
        return
    with events.install_listener("numba:compile", _build_listener(events.Listener, progress)):
        yield


def _build_listener(base: Any, progress: Callable[[str, int, int], None]) -> Any:
    # a loop compiles those that it calls: the first to start is the last to end
    counts = {"started": 0, "ended": 0}

    def count(event: str) -> None:
        counts[event] += 1
        progress(STEP, counts["ended"], counts["started"])

    methods = {"on_start": lambda _self, _event: count("started"), "on_end": lambda _self, _event: count("ended")}
    return type("CompileListener", (base,), methods)()
