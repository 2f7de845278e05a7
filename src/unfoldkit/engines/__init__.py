"""Where work runs: in local processes or on Ray. Both implement :class:`Engine`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol


class Engine(Protocol):
    """Runs independent jobs in parallel."""

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
        """Return ``[function(item) for item in items]``, computed in parallel.

        Args:
            function: The job; it must be picklable.
            items: Its arguments.
            on_result: Called as ``on_result(index, result)`` in this process as each job ends.

        Raises:
            UnfoldError: A worker died (exit code 3). An exception of ``function`` is raised unchanged.
        """
