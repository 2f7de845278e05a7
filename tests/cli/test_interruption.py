"""Ctrl-C and SIGTERM: in order at first, at once at the second, and the last line printed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from unfoldkit.cli.console import run_guarded
from unfoldkit.cli.execution import noting_stop
from unfoldkit.cli.interruption import (
    DOUBLE_PRESS_S,
    StopHandler,
    find_handler,
    find_stop,
    guarding_verb,
    handling_stops,
    name_leftovers,
)
from unfoldkit.errors import user_error
from unfoldkit.run_directory import RunDir


def press(handler: StopHandler, now_s: float, number: int = signal.SIGINT) -> None:
    """Deliver a signal at a time."""
    handler.clock = lambda: now_s
    handler(number)


def test_before_a_verb_a_signal_ends_the_process_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    """Imports need no cleaning up: one word, and 130 or 143."""
    codes: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        press(StopHandler(end=codes.append), 100.0, number)
    assert codes == [130, 143]
    assert capfd.readouterr().err == "interrupted\nterminated\n"


def test_a_second_signal_ends_a_verb_that_cleans_up(capfd: pytest.CaptureFixture[str]) -> None:
    """The first raises, one right after it is the same wish, and a later one ends the process."""
    codes: list[int] = []
    handler = StopHandler(is_guarded=True, end=codes.append)
    with pytest.raises(KeyboardInterrupt):
        press(handler, 100.0)
    handler.ended.set()
    press(handler, 100.0 + DOUBLE_PRESS_S / 2)
    assert codes == []
    press(handler, 100.0 + 2 * DOUBLE_PRESS_S)
    assert codes == [130]
    assert capfd.readouterr().err == "interrupted again: ended before the verb had cleaned up\n"


@pytest.mark.parametrize(("rented", "end"), [("i-1 is rented", "; i-1 is rented"), ("", ""), (None, "")])
def test_what_an_end_at_once_leaves_is_named(capfd: pytest.CaptureFixture[str], rented: str | None, end: str) -> None:
    """The verb describes it; one that cannot, as its files are closed, does not keep the process from its end."""

    def describe() -> str:
        if rented is None:
            raise ValueError
        return rented

    handler = StopHandler(is_guarded=True, end=lambda _: None, describe_leftovers=describe)
    with pytest.raises(KeyboardInterrupt):
        press(handler, 100.0)
    press(handler, 102.0)
    assert handler.ended.is_set()
    assert capfd.readouterr().err == f"interrupted again: ended before the verb had cleaned up{end}\n"


def test_a_verb_names_what_it_leaves_until_it_ends() -> None:
    """The description is that of the verb which runs."""
    with handling_stops(is_process=False):
        handler = find_handler()
        assert handler is not None
        with guarding_verb():
            name_leftovers(lambda: "i-1")
            assert handler.describe_leftovers() == "i-1"
        assert handler.describe_leftovers() == ""


def test_tasks_of_an_event_loop_are_canceled() -> None:
    """Coroutines clean up: the exception is not raised in the middle of the loop, which waits for nothing else."""
    cleaned: list[str] = []

    async def wait() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            cleaned.append("closed")

    async def work() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(wait())
            asyncio.get_running_loop().call_later(0.05, os.kill, os.getpid(), signal.SIGTERM)

    with handling_stops(is_process=False):
        assert run_guarded(lambda: asyncio.run(work()) or 0) == 143
    assert cleaned == ["closed"]


def fail() -> int:
    """Raise what an import raises that a signal ended."""
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
    except KeyboardInterrupt as error:
        raise ImportError("numpy is broken") from error
    return 0


def test_a_stop_that_surfaces_as_another_exception_is_a_stop(capsys: pytest.CaptureFixture[str]) -> None:
    """An exception caused by a signal is not an error of the program: 130, and no word on the exception."""
    with handling_stops(is_process=False):
        assert run_guarded(fail) == 130
    assert capsys.readouterr().err == "interrupted; nothing was changed\n"
    assert find_stop() is None


class Swallowing:
    """An object with an end that cannot raise."""

    def __del__(self) -> None:
        """Receive the signal where Python drops its exception."""
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)


@pytest.mark.timed
def test_a_signal_that_python_drops_is_raised_again(capsys: pytest.CaptureFixture[str]) -> None:
    """A signal in a finalizer neither shows a trace nor is lost."""

    def work() -> int:
        Swallowing()
        end = time.monotonic() + 5
        while time.monotonic() < end:
            time.sleep(0.01)
        return 0

    with handling_stops(is_process=False):
        assert run_guarded(work) == 130
    assert capsys.readouterr().err == "interrupted; nothing was changed\n"


def test_a_signal_that_is_swallowed_is_raised_again() -> None:
    """Code that catches everything goes on for a moment only; what cleans up is left alone."""
    events: list[str] = []

    def work() -> int:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        except BaseException:  # noqa: BLE001 - as some libraries do
            events.append("swallowed")
        try:
            time.sleep(5)
            events.append("went on")
        finally:
            for _ in range(20):
                time.sleep(0.1)
            events.append("cleaned up")
        return 0

    with handling_stops(is_process=False):
        assert run_guarded(work) == 130
    assert events == ["swallowed", "cleaned up"]


def test_a_stop_within_generated_code_has_its_exit_code(tmp_path: Path) -> None:
    """A signal while a data class is made, whose methods are executed as text, ends python -m like any other."""
    (tmp_path / "stopped.py").write_text(
        "import sys\n"
        "from unfoldkit.cli.console import run_guarded\n"
        "from unfoldkit.cli.interruption import handling_stops\n"
        "with handling_stops(is_process=True):\n"
        "    text = 'import os\\nos.kill(os.getpid(), 15)\\nfor _ in range(1000): pass'\n"
        "    code = run_guarded(lambda: exec(text))\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run([sys.executable, "-m", "stopped"], cwd=tmp_path, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (143, "terminated; nothing was changed\n")


def test_an_ignored_signal_stays_ignored() -> None:
    """What nohup ignores does not end a verb."""
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with handling_stops(is_process=False), guarding_verb():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, previous)


@pytest.mark.parametrize(
    ("name", "note", "text"),
    [
        ("model", "", "the same command resumes where it was: "),
        ("spec.yaml", "", "nothing was stored in {folder}; the same command starts again: "),
        ("", "$1 of $5 spent", "$1 of $5 spent; the same command resumes where it was: "),
    ],
)
def test_the_last_line_says_whether_the_command_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, note: str, text: str
) -> None:
    """A verb resumes if it has stored a result, or lists what it has stored; the spec alone is none."""
    monkeypatch.setattr(sys, "argv", ["unfold", "train", "a b.yaml"])
    run = RunDir(tmp_path)
    run.write("earlier", b"1")
    stop = KeyboardInterrupt()
    if note:
        stop.add_note(note)

    def work() -> None:
        with noting_stop(run):
            if name:
                run.write(name, b"2")
            raise stop

    with pytest.raises(KeyboardInterrupt):
        work()
    assert stop.__notes__[-1] == f"{text.format(folder=tmp_path)}unfold train 'a b.yaml'"


def test_a_mistake_is_no_stop(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Notes on other exceptions are not shown."""

    def work() -> int:
        with noting_stop(RunDir(tmp_path)):
            raise user_error("no such file")

    with handling_stops(is_process=False):
        assert run_guarded(work) == 2
    assert capsys.readouterr().err == "no such file\n"


def test_a_signal_after_the_answer_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """A second press while the interpreter ends keeps the code of the first one, and adds no line."""
    codes: list[int] = []
    handler = StopHandler(is_over=True, number=signal.SIGTERM, end=codes.append)
    handler.last_s = handler.clock()
    handler(signal.SIGINT)
    assert codes == [143]
    assert capfd.readouterr().err == ""
