"""Completion in the shells themselves: each loads the script that the command prints, and completes a line."""

from __future__ import annotations

import os
import pty
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import surroundings

LINES = [
    ("unfold pl", {"plan", "plugins"}),
    ("unfold plan --rec", {"--recalibrate"}),
    ("unfold init ", {"cascade", "pipeline", "placement", "supernet", "tuning"}),
    ("unfold plan --format j", {"json", "junit"}),
    ("unfold catalog r", {"refresh"}),
]


def environment(folder: Path) -> dict[str, str]:
    """Return the variables of a shell with the command on its path."""
    programs = Path(sys.executable).parent
    return surroundings({"PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(folder), "TERM": "dumb"})


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the script of each shell."""
    folder = tmp_path_factory.mktemp("scripts")
    for shell in ("bash", "fish", "zsh"):
        write_script(shell, folder)
    return folder


def write_script(shell: str, folder: Path) -> None:
    """Write the script of a shell, as ``unfold --install-completion`` does."""
    words = ["unfold"]
    done = subprocess.run(
        words, env={**environment(folder), "_UNFOLD_COMPLETE": f"source_{shell}"}, capture_output=True, check=True
    )
    (folder / f"completion.{shell}").write_bytes(done.stdout)


def run(shell: str, code: str, folder: Path) -> str:
    """Return what a shell prints."""
    words = [shell, *{"zsh": ["-f"], "fish": ["--no-config"]}.get(shell, ["--norc"]), "-c", code]
    done = subprocess.run(words, env=environment(folder), cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize(("line", "expected"), LINES)
def test_bash_completes(line: str, expected: set[str], scripts: Path) -> None:
    """Bash offers exactly the words."""
    words = line.split(" ")
    quoted = " ".join(f"'{word}'" for word in words)
    code = (
        f"source completion.bash; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; "
        '_unfold_completion unfold; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    assert expected <= set(run("bash", code, scripts).split()) <= expected | {"echo"}


@pytest.mark.skipif(shutil.which("fish") is None, reason="there is no fish on the path")
@pytest.mark.parametrize(("line", "expected"), LINES)
def test_fish_completes(line: str, expected: set[str], scripts: Path) -> None:
    """Fish offers the words, with their help."""
    code = f"source completion.fish; complete -C '{line}'"
    offered = {row.split("\t")[0] for row in run("fish", code, scripts).splitlines()}
    assert expected <= offered <= expected | {"echo"}


@pytest.mark.skipif(shutil.which("zsh") is None, reason="there is no zsh on the path")
def test_zsh_completes(scripts: Path, tmp_path: Path) -> None:
    """An interactive zsh completes the only match, and lists several."""
    lines = ["PROMPT='> '", "autoload -Uz compinit && compinit -u", f"source {scripts / 'completion.zsh'}", ""]
    (tmp_path / ".zshrc").write_text("\n".join(lines))
    leader, follower = pty.openpty()
    with subprocess.Popen(
        ["zsh", "-i"], env=environment(tmp_path), cwd=tmp_path, stdin=follower, stdout=follower, stderr=follower,
        start_new_session=True,
    ) as shell:  # fmt: skip
        os.close(follower)
        try:
            read_until(leader, "> ")
            os.write(leader, b"unfold plan --rec\t")
            read_until(leader, "--recalibrate")
            os.write(leader, b"\x15unfold pl\t\t")
            read_until(leader, "plugins")
        finally:
            shell.kill()
            os.close(leader)


def read_until(descriptor: int, text: str, patience_s: float = 20.0) -> None:
    """Read from a terminal until some text appears."""
    output, deadline = "", time.monotonic() + patience_s
    os.set_blocking(descriptor, False)
    while text not in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output):
        assert time.monotonic() < deadline, repr(output)
        try:
            output += os.read(descriptor, 1 << 16).decode(errors="replace")
        except BlockingIOError:
            time.sleep(0.02)
