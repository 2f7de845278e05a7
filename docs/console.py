"""Run the commands on a page and compare what they print: ``python -m docs.console [--installs] [PAGE...]``.

A page opts in with ``<!-- run -->``, or with ``<!-- run: installs -->`` if its commands install packages; those wait
for an environment made for them. In a ```console block, a line after ``$`` is a command and the lines below it are
its output, stdout and stderr together; a line ``...`` stands for any lines, ``...`` in a line for any text. A block
with an info string that ends in a file name, such as ```yaml first.yaml, is that file. All blocks of a page share one
empty folder and one shell. A port that a page serves on, after ``--port``, is a free one while it runs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
MARK = "--8<-- end of command --8<--"
BLOCK = re.compile(r"^```(\w*)[ ]?(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PORT = re.compile(r"--port (\d+)")


@dataclass(frozen=True, slots=True)
class Step:
    """A command and the output that the page shows; ``file`` and its text if the step writes a file instead."""

    command: str = ""
    output: str = ""
    file: str = ""
    text: str = ""


def pages(*, installs: bool) -> list[Path]:
    """Return the pages that want to be run, with or without installing."""
    wanted = "<!-- run: installs -->" if installs else "<!-- run -->"
    return [path for path in sorted((ROOT / "docs").rglob("*.md")) if wanted in path.read_text("utf-8")]


def steps(page: str) -> Iterator[Step]:
    """Yield the steps of a page in order."""
    for language, file, body in BLOCK.findall(page):
        if language == "console":
            yield from _commands(body)
        elif file:
            yield Step(file=file, text=body)


def _commands(body: str) -> Iterator[Step]:
    for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        yield Step(command, output.strip("\n"))


def run(page: str, folder: Path, environment: Mapping[str, str]) -> Iterator[str]:
    """Run the steps in ``folder`` and yield one message for every output that is not as shown."""
    found = list(steps(page))
    done = subprocess.run(
        ["/usr/bin/env", "bash"], input=_script(found), cwd=folder, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    outputs = done.stdout.split(MARK + "\n")
    commands = [step for step in found if step.command]
    if len(outputs) != len(commands) + 1:
        yield f"the shell ended early:\n{done.stdout}"
        return
    for step, output in zip(commands, outputs, strict=False):
        if not matches(step.output, output):
            yield f"$ {step.command}\nthe page shows:\n{step.output}\nit prints:\n{output}"


def _script(found: Sequence[Step]) -> str:
    return "".join(_written(step) if step.file else _marked(step.command) for step in found)


def _written(step: Step) -> str:
    return f"mkdir -p \"$(dirname '{step.file}')\"; cat > '{step.file}' <<'END_OF_FILE'\n{step.text}END_OF_FILE\n"


def _marked(command: str) -> str:
    # the mark must not hide the exit code, which the next command may show
    return f"{{ {command}\n}} < /dev/null\n_code=$?; echo '{MARK}'; (exit $_code)\n"


def matches(shown: str, printed: str) -> bool:
    """Whether the output is as shown: trailing blanks aside, and with ``...`` for any lines."""
    pattern = "".join(r"(?:.*\n)*?" if line == "..." else _wild(line) + "\n" for line in _lines(shown))
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in _lines(printed))) is not None


def _wild(line: str) -> str:
    return ".*".join(re.escape(part) for part in line.split("..."))


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip("\n").splitlines()]


def surroundings(base: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the commands: this interpreter's programs first, no colour, no progress."""
    first = str(Path(sys.executable).parent)
    own = {"NO_COLOR": "1", "CI": "", "UNFOLD_PROGRESS": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    return {**base, **own, "PATH": f"{first}{os.pathsep}{base.get('PATH', '')}"}


def check(path: Path) -> list[str]:
    """Run one page in a folder of its own that holds the shipped ``configs``."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "configs", Path(folder) / "configs")
        # the attempts of a page are counted from 1
        records = {"XDG_STATE_HOME": f"{folder}/.state"}
        return list(run(on_free_ports(path.read_text("utf-8")), Path(folder), surroundings({**os.environ, **records})))


def on_free_ports(page: str) -> str:
    """Return the page with a free port for each that it serves on, so that two checkouts can run it at once."""
    with contextlib.ExitStack() as held:
        for port in sorted(set(PORT.findall(page))):
            # held until all are found: a port that is given back is offered again
            free = held.enter_context(socket.socket())
            free.bind(("127.0.0.1", 0))
            page = re.sub(rf"(--port |:){port}\b", rf"\g<1>{free.getsockname()[1]}", page)
    return page


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 if every page shows what its commands print, else 1."""
    parser = argparse.ArgumentParser(prog="python -m docs.console", description=__doc__)
    parser.add_argument("pages", nargs="*", type=Path)
    parser.add_argument("--installs", action="store_true", help="the pages that install, in this environment")
    given = parser.parse_args(arguments)
    wrong = 0
    for path in given.pages or pages(installs=given.installs):
        found = check(path)
        wrong += len(found)
        print(f"{path.name}: {'as shown' if not found else f'{len(found)} commands differ'}")
        print("".join(f"\n{item}\n" for item in found), end="")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
