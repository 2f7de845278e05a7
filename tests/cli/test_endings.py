"""How a process ends: closed pipes, Ctrl-C, full disks, kill -9, two at once."""

from __future__ import annotations

import errno
import json
import os
import random
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support import ECHO, Process, Unfold, command, surroundings
from unfoldkit.cli.console import run_guarded
from unfoldkit.errors import user_error
from unfoldkit.report import from_data, to_data, without_measurements
from unfoldkit.run_directory import RunDir

SLOW = ECHO + "repeat: 20\npause: 30 ms\n"


@contextmanager
def started(folder: Path, *words: str, **more: Any) -> Iterator[subprocess.Popen[str]]:
    """Start the command line and see that it is gone at the end, with whatever it started."""
    process = subprocess.Popen(
        command(words),
        cwd=folder,
        env=surroundings(),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **more,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for(name: str, folder: Path, process: subprocess.Popen[str]) -> None:
    """Wait until a file of the run is listed."""
    end = time.monotonic() + 60
    while not RunDir(folder / "runs" / "a").has(name):
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < end, f"no {name} after a minute"
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--version"], 0),
        (["plan", "a.yaml"], 0),
        (["plan", "dear.yaml"], 1),
        (["check", "bad.yaml"], 2),
        (["serve", "nonesuch.yaml"], 2),
    ],
)
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.usefixtures("spec", "dear")
def test_closed_streams_change_no_answer(tmp_path: Path, words: list[str], code: int, closed: str) -> None:
    """Whoever closes stdin, stdout or stderr, as some that start services do, gets the exit code that is due."""
    (tmp_path / "bad.yaml").write_text(ECHO + "repeat: 0\n", encoding="utf-8")
    line = f"exec {shlex.join(command(words))} {closed}"
    done = subprocess.run(["sh", "-c", line], cwd=tmp_path, env=surroundings(), capture_output=True, check=False)
    assert done.returncode == code, done.stderr
    assert b"Traceback" not in done.stderr + done.stdout
    assert b"unexpected" not in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["plan", "a.yaml", "--format", "json"],
        ["check", "bad.yaml"],
        ["--version"],
        ["plan", "--help"],
        ["schema"],
        ["plan", "nonesuch"],
    ],
    ids=" ".join,
)
def test_a_closed_pipe_ends_quietly(tmp_path: Path, spec: Path, words: list[str]) -> None:
    """When the reader closes stdout, the process ends with 141 and prints nothing; a bad call still ends with 2."""
    (tmp_path / "bad.yaml").write_text(ECHO + "repeat: 0\n", encoding="utf-8")
    reader, writer = os.pipe()
    os.close(reader)
    with started(tmp_path, *words, stdout=writer) as process:
        os.close(writer)
        output = process.communicate(timeout=60)[1]
    if words[-1] == "nonesuch":
        assert process.returncode == 2
    else:
        assert (process.returncode, output) == (141, "")


def test_head_takes_what_it_wants(tmp_path: Path, spec: Path) -> None:
    """``unfold … | head -c1`` ends without a complaint, however much output was left."""
    line = " ".join(command(["plan", "a.yaml", "--format", "json"])) + ' | head -c1; echo ".${PIPESTATUS[0]}"'
    done = subprocess.run(
        ["bash", "-c", line], cwd=tmp_path, env=surroundings(), capture_output=True, text=True, check=True, timeout=60
    )
    first, code = done.stdout.strip().split(".")
    assert (first, done.stderr) == ("{", "")
    assert code in ("0", "141")


def test_a_closed_stderr_hides_nothing_else(tmp_path: Path) -> None:
    """When stderr is closed too, a bad spec still ends with 2."""
    (tmp_path / "bad.yaml").write_text(ECHO + "repeat: 0\n", encoding="utf-8")
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        command(["plan", "bad.yaml"]), cwd=tmp_path, env=surroundings(), stderr=writer, stdout=writer, check=False
    )
    os.close(writer)
    assert done.returncode == 2


@pytest.mark.e2e
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_ctrl_c_ends_with_130_and_the_run_goes_on(tmp_path: Path, unfold: Unfold, jobs: str) -> None:
    """Ctrl-C ends the process soon with 130 and one line, in one process or several; the same command goes on."""
    (tmp_path / "slow.yaml").write_text(ECHO + "repeat: 3\npause: 1 s\n", encoding="utf-8")
    with started(tmp_path, "train", "slow.yaml", "--jobs", jobs, stdout=subprocess.PIPE) as process:
        wait_for("said/0.txt", tmp_path, process)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    words = f"unfold train slow.yaml --jobs {jobs}"
    assert err == f"interrupted; the same command resumes where it was: {words}\n"
    run = RunDir(tmp_path / "runs" / "a")
    assert run.read("said/0.txt") == b"hi"
    before = (run.path / "said" / "0.txt").stat().st_mtime_ns
    assert unfold("train", "slow.yaml", "--jobs", "1", "--set", "pause=1 ms").code == 0
    assert (run.path / "said" / "0.txt").stat().st_mtime_ns == before, "what was done was done again"


@pytest.mark.e2e
def test_sigterm_ends_a_verb_like_ctrl_c(tmp_path: Path) -> None:
    """A verb that a scheduler ends exits with 143 and one line, and names the command that goes on."""
    (tmp_path / "slow.yaml").write_text(ECHO + "repeat: 3\npause: 1 s\n", encoding="utf-8")
    with started(tmp_path, "train", "slow.yaml", "--jobs", "2", stdout=subprocess.PIPE) as process:
        wait_for("said/0.txt", tmp_path, process)
        process.terminate()
        _, words = process.communicate(timeout=30)
    assert process.returncode == 143
    assert words == "terminated; the same command resumes where it was: unfold train slow.yaml --jobs 2\n"


def result(folder: Path) -> dict[str, Any]:
    """Return the report of a run, measured times aside."""
    data = json.loads((folder / "runs" / "a" / "report.json").read_text(encoding="utf-8"))
    return to_data(without_measurements(from_data(data)))


@pytest.mark.parametrize("seed", range(3))
def test_a_killed_run_ends_with_the_same_report(tmp_path: Path, unfold: Unfold, seed: int) -> None:
    """Killed with SIGKILL at a random moment, and started again, a run ends as if nothing had happened."""
    dice = random.Random(seed)  # noqa: S311 - tests, not secrets
    undisturbed = tmp_path / "undisturbed"
    for folder in (tmp_path, undisturbed):
        folder.mkdir(exist_ok=True)
        (folder / "slow.yaml").write_text(SLOW, encoding="utf-8")
    with started(tmp_path, "train", "slow.yaml", "--jobs", "1", stdout=subprocess.DEVNULL) as process:
        wait_for("origin.json", tmp_path, process)
        time.sleep(dice.uniform(0, 0.9))
        process.kill()
        process.wait()
    listed = RunDir(tmp_path / "runs" / "a")
    done = [name for name in listed.files() if listed.read(name) and name.startswith("said/")]
    assert unfold("train", "slow.yaml", "--jobs", "1").code == 0
    os.chdir(undisturbed)
    assert unfold("train", "slow.yaml", "--jobs", "1").code == 0
    assert result(tmp_path) == result(undisturbed)
    assert set(done) <= set(listed.files())
    assert {name: listed.read(name) for name in listed.files() if name.startswith("said/")} == {
        f"said/{index}.txt": b"hi" for index in range(20)
    }


def test_workers_die_with_their_parent(tmp_path: Path) -> None:
    """After SIGKILL of the command its worker processes are gone too."""
    (tmp_path / "slow.yaml").write_text(ECHO + "repeat: 4\npause: 20 s\n", encoding="utf-8")
    with started(tmp_path, "train", "slow.yaml", "--jobs", "2", stdout=subprocess.DEVNULL) as process:
        end = time.monotonic() + 60
        while len(children(process.pid)) < 2:
            assert time.monotonic() < end, "no workers after a minute"
            time.sleep(0.05)
        workers = children(process.pid)
        process.kill()
        process.wait()
        end = time.monotonic() + 20
        while any(alive(worker) for worker in workers):
            assert time.monotonic() < end, "a worker outlived its parent"
            time.sleep(0.05)


def children(parent: int) -> list[int]:
    """Return the spawned workers of a process."""
    found = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return [process for process in found if stat(process)[1] == parent and b"spawn_main" in words_of(process)]


def words_of(process: int) -> bytes:
    """Return the command line of a process."""
    try:
        return (Path("/proc") / str(process) / "cmdline").read_bytes()
    except OSError:
        return b""


def stat(process: int) -> tuple[str, int]:
    """Return state and parent of a process."""
    try:
        fields = (Path("/proc") / str(process) / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return "", 0
    return fields[0], int(fields[1])


def alive(process: int) -> bool:
    """Whether a process still runs."""
    return stat(process)[0] not in ("", "Z", "X")


def test_two_processes_do_not_share_a_run(tmp_path: Path, unfold: Unfold) -> None:
    """A second process on a run that is in use is refused with exit code 2, and the first is not disturbed."""
    (tmp_path / "slow.yaml").write_text(ECHO + "repeat: 1\npause: 3 s\n", encoding="utf-8")
    with started(tmp_path, "train", "slow.yaml", stdout=subprocess.PIPE) as process:
        wait_for("spec.yaml", tmp_path, process)
        second = unfold("train", "slow.yaml")
        assert (second.code, second.out) == (2, "")
        assert second.err == "runs/a: another process is using this run (wait, or --run DIR)\n"
        process.communicate(timeout=60)
        assert process.returncode == 0


def full(*_: object) -> None:
    """Fail as a full disk does."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_keeps_what_was_there(
    tmp_path: Path, spec: Path, unfold: Unfold, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk a verb exits with 3 and names the file; the old run and the old --out are as they were."""
    assert unfold("plan", spec).code == 0
    assert unfold("plan", spec, "--out", "out.json").code == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        verb, out = unfold("plan", spec, "--set", "repeat=3"), unfold("report", "runs/a", "--out", "out.json")
    assert (verb.code, verb.out) == (3, "")
    assert verb.err.startswith("runs/a/") and "cannot write: No space left on device" in verb.err  # noqa: PT018 - one line
    assert out.code == 3
    assert out.err.startswith("out.json: cannot write: No space left on device")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert unfold("report", "runs/a").code == 0


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a.npy"), 3, "a.npy: the system refused it: No space left"),
        (OSError(errno.EMFILE, "Too many open files"), 3, "the system refused it: Too many open files"),
        (MemoryError("Unable to allocate 8.0 GiB"), 3, "out of memory: Unable to allocate 8.0 GiB"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "running.json"), 2, "running.json: cannot be used: Is a"),
        (FileNotFoundError(errno.ENOENT, "No usable temporary directory found"), 2, "a folder is missing: No usable"),
        (ExceptionGroup("tasks", [user_error("no such model")]), 2, "no such model"),
    ],
)
def test_what_the_system_refuses_is_no_mistake_of_the_program(
    capsys: pytest.CaptureFixture[str], error: Exception, code: int, message: str
) -> None:
    """A full disk, too many files and too little memory are named as such, also from a task of a group."""

    def fail() -> int:
        raise error

    assert run_guarded(fail) == code
    assert capsys.readouterr().err.startswith(message)


def test_an_interrupted_start_says_so(unfold_process: Process, tmp_path: Path) -> None:
    """Ctrl-C before a verb has begun ends with 130 and no trace."""
    code = "import unfoldkit.cli as c\ndef run(words, **_): raise KeyboardInterrupt\nc._run = run\nc.main(['plan'])\n"
    done = subprocess.run(
        [command([])[0], "-c", code], env=surroundings(), capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--version"], "cannot write: No space left on device\n"),
        (["--help"], "cannot write: No space left on device\n"),
        (["schema"], "cannot write the report: No space left on device (--out FILE writes it to a file)\n"),
    ],
)
def test_what_a_full_disk_does_not_take_is_no_answer(tmp_path: Path, words: list[str], expected: str) -> None:
    """What cannot be written ends with 3 and one line, not with a trace and 1, which means no."""
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        done = subprocess.run(
            command(words), cwd=tmp_path, env=surroundings(), stdout=full, stderr=-1, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (3, expected)


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("words", "code"), [(["plan", "nothing.yaml"], 2), (["report", "runs/nothing"], 2), (["--nothing"], 3)]
)
def test_a_full_disk_behind_stderr_is_no_answer(tmp_path: Path, words: list[str], code: int) -> None:
    """A message that cannot be written changes the code of no verb, and never ends with 1, which means no."""
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        done = subprocess.run(command(words), cwd=tmp_path, env=surroundings(), stdout=-1, stderr=full, check=False)
    assert done.returncode == code
