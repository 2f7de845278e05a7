"""What a terminal shows while loops are compiled."""

from __future__ import annotations

import sys

import pytest

from unfoldkit.cli.progress import COMPILATION_STEP, report_compilation


def test_loops_are_reported_while_they_are_compiled() -> None:
    """Each loop is announced when its compilation begins and ends; one that is already compiled is not."""
    import numba

    inner = numba.njit(lambda x: x + 1)
    outer = numba.njit(lambda x: inner(x) * 2)
    steps: list[tuple[str, int, int]] = []
    with report_compilation(lambda *step: steps.append(step)):
        assert outer(1) == outer(1) == 4
    assert steps == [(COMPILATION_STEP, *counts) for counts in ((0, 1), (0, 2), (1, 2), (2, 2))]
    assert outer(1.0) == 4.0
    assert len(steps) == 4


def test_nothing_is_imported_to_report_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a verb has not imported Numba, it is not imported for it."""
    monkeypatch.delitem(sys.modules, "numba.core.event", raising=False)
    with report_compilation(lambda *_: None):
        assert "numba.core.event" not in sys.modules
