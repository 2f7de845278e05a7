"""What every engine promises."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol


class Engine(Protocol):
    """Runs independent jobs side by side."""

    @property
    def name(self) -> str:
        """``local`` or ``ray``."""

    def map(
        self,
        function: Callable[[Any], Any],
        items: Sequence[Any],
        *,
        on_result: Callable[[int, Any], None] | None = None,
    ) -> list[Any]:
        """Return ``[function(item) for item in items]``, run side by side, results in the order of ``items``.

        ``on_result(index, result)`` is called here, in this process, as each job ends.

        Raises:
            UnfoldError: a worker died (exit code 3). An exception of ``function`` is raised as it is.
        """
