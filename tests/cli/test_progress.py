"""Progress: stages, rate and time left, as plain lines where stderr is no terminal."""

from __future__ import annotations

import re

import pytest

from unfoldkit.cli.progress import (
    SHOWN_MEMORY_BYTES,
    ProgressLines,
    describe_rate,
    read_memory_bytes,
    show_progress,
)


class Clock:
    """A clock that a test sets."""

    now_s = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now_s


def replay(seconds: list[float], total: int) -> list[str]:
    """Return the lines that are written if one part is reported at each of these times, in s."""
    lines: list[str] = []
    clock = Clock()
    report = ProgressLines("train a", lines.append, clock)
    for done, now_s in enumerate(seconds):
        clock.now_s = now_s
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


def test_a_step_of_unknown_length_writes_no_time_left() -> None:
    """A search that may end at any moment shows how much it has done, and how quickly."""
    assert replay([float(second) for second in range(14)], 0) == ["models · one 2 · 1/s", "models · one 12 · 1/s"]


def test_many_short_steps_write_lines_too() -> None:
    """A verb of many short steps writes a line every two seconds at most, whatever the length of a step."""
    lines: list[str] = []
    clock = Clock()
    report = ProgressLines("plan a", lines.append, clock)
    for step in range(8):
        report(f"step {step}", 0, 1)
        clock.now_s += 1.0
        report(f"step {step}", 1, 1)
    assert lines == ["step 1 1/1 · 1/s", "step 3 1/1 · 1/s", "step 5 1/1 · 1/s", "step 7 1/1 · 1/s"]


def test_a_silent_verb_writes_how_long_it_runs() -> None:
    """A verb that reports nothing writes its name and its time; a silent step, how far it has come; and its memory."""
    lines: list[str] = []
    clock = Clock()
    report = ProgressLines("plan a", lines.append, clock, read_memory=lambda: 3 * SHOWN_MEMORY_BYTES)
    for second in range(1, 31):
        clock.now_s = float(second)
        report.beat()
        if second == 15:
            report("gates", 1, 4)
    assert lines == [
        "plan a · 2.00 s so far · 3 GiB",
        "plan a · 12 s so far · 3 GiB",
        "gates 1/4 · 3 GiB",
        "gates 1/4 · 25 s so far · 3 GiB",
    ]


def test_a_silent_step_counts_down_the_time_that_it_predicted() -> None:
    """Where each part takes a minute, the time left is written in between, until the prediction has passed."""
    lines: list[str] = []
    clock = Clock()
    report = ProgressLines("serve a", lines.append, clock)
    for second, done in ((0.0, 0), (60.0, 1)):
        clock.now_s = second
        report("replay", done, 2)
    for second in (75.0, 100.0, 125.0):
        clock.now_s = second
        report.beat()
    assert lines == [
        "replay 1/2 · 1/min · 60 s left",
        "replay 1/2 · 75 s so far · 45 s left",
        "replay 1/2 · 100 s so far · 20 s left",
        "replay 1/2 · 2.1 min so far",
    ]


@pytest.mark.parametrize(
    ("rate", "text"), [(None, ""), (0.0, ""), (12345.0, "12,345/s"), (2.5, "2.5/s"), (0.5, "30/min"), (0.001, "3.6/h")]
)
def test_a_rate_has_a_unit_in_which_it_is_readable(rate: float | None, text: str) -> None:
    """A slow step has a rate per minute or hour instead of a small fraction."""
    assert describe_rate(rate) == text


def test_memory_of_the_process_is_read() -> None:
    """The memory of this process is some megabytes at least."""
    assert read_memory_bytes() > 2**22


@pytest.mark.parametrize("environment", [{"CI": "true"}, {}])
def test_ci_and_pipes_have_lines(environment: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """In CI and in a pipe, plain lines are written, without an escape sequence; none in the first two seconds."""
    with show_progress("plan a", environment) as progress:
        assert isinstance(progress, ProgressLines)
        progress("models", 1, 2)
        assert capsys.readouterr().err == ""
        progress.start_s -= 3.0
        progress.beat()
    assert re.fullmatch(r"models 1/2 · 3\.0\d s so far( · \S+ GiB)?\n", capsys.readouterr().err)


def test_progress_can_be_turned_off(capsys: pytest.CaptureFixture[str]) -> None:
    """With UNFOLD_PROGRESS=0 nothing is written."""
    with show_progress("plan a", {"CI": "true", "UNFOLD_PROGRESS": "0"}) as progress:
        assert not isinstance(progress, ProgressLines)
        progress("models", 1, 2)
    assert capsys.readouterr().err == ""
