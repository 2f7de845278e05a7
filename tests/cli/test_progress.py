"""Progress: stages, rate and time left, as lines in CI."""

from __future__ import annotations

import pytest

from unfoldkit.cli.console import ProgressLines, describe_rate, show_progress


def replay(seconds: list[float], total: int) -> list[str]:
    """Return the lines that are written if one part is reported at each of these times, in s."""
    lines: list[str] = []
    times = iter(seconds)
    report = ProgressLines(lines.append, {}, lambda: next(times))
    for done in range(len(seconds)):
        report("models · one", done, total)
    return lines


def test_a_short_step_writes_nothing() -> None:
    """A step that ends within two seconds leaves the log as it is."""
    assert replay([0.0, 0.5, 1.0, 1.9], 3) == []


def test_a_long_step_writes_its_rate_and_the_time_left() -> None:
    """The first line comes after two seconds, the next ones every ten, and the last one at the end."""
    lines = replay([float(second) for second in range(31)], 30)
    assert lines == [
        "models · one 2/30 · 1/s · 28 s left",
        "models · one 12/30 · 1/s · 18 s left",
        "models · one 22/30 · 1/s · 8.00 s left",
        "models · one 30/30 · 1/s",
    ]


@pytest.mark.parametrize(
    ("rate", "text"), [(None, ""), (0.0, ""), (12345.0, "12,345/s"), (2.5, "2.5/s"), (0.5, "30/min"), (0.001, "3.6/h")]
)
def test_a_rate_has_a_unit_in_which_it_is_readable(rate: float | None, text: str) -> None:
    """A slow step has a rate per minute or hour instead of a small fraction."""
    assert describe_rate(rate) == text


def test_ci_has_lines_and_a_pipe_has_none(capsys: pytest.CaptureFixture[str]) -> None:
    """With CI set, plain lines are written; in a pipe without it nothing is."""
    with show_progress({"CI": "true"}) as progress:
        assert isinstance(progress, ProgressLines)
    with show_progress({}) as progress:
        progress("models", 1, 2)
    assert capsys.readouterr().err == ""
