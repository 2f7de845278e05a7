"""What several tests need: the command line as a function, specs as text, plugins as folders."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from unfoldkit.cli import main

ROOT = Path(__file__).parents[1]
HELLO = ROOT / "configs" / "echo" / "hello.yaml"
ECHO = "version: 1\nkind: echo\nname: a\nmessage: hi\n"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one call of the command line left behind."""

    code: int
    out: str
    err: str
    raw: bytes = b""


Unfold = Callable[..., Outcome]
Process = Callable[..., "subprocess.CompletedProcess[str]"]


def call(words: Sequence[str | Path], stdin: bytes = b"") -> Outcome:
    """Run the command line in this process, with streams of its own."""
    kept = sys.stdin, sys.stdout, sys.stderr
    out, err = io.BytesIO(), io.BytesIO()
    sys.stdin = io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8")
    sys.stdout, sys.stderr = (io.TextIOWrapper(stream, encoding="utf-8", write_through=True) for stream in (out, err))
    code = 0
    try:
        main([str(word) for word in words])
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    finally:
        raw, error_text = out.getvalue(), err.getvalue().decode()
        sys.stdin, sys.stdout, sys.stderr = kept
    return Outcome(code, raw.decode(errors="replace"), error_text, raw)


def command(words: Sequence[str | Path]) -> list[str]:
    """Return the words that start the command line as a process."""
    return [sys.executable, "-m", "unfoldkit", *(str(word) for word in words)]


def surroundings(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this environment without what changes how the command line looks, and with ``more``."""
    off = ("UNFOLD_", "NO_COLOR", "FORCE_COLOR", "CI", "COLUMNS")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(off)}
    # lines of progress depend on how busy the machine is
    return {**kept, "UNFOLD_PROGRESS": "0", **(more or {})}


@contextmanager
def limited_file_size(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond ``size`` bytes: a write is cut short there, as on a full disk."""
    # not on Windows
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def distribution(folder: Path, name: str, code: str, *, module: str = "", entry: str = "") -> Path:
    """Make a distribution that offers a plugin; ``folder`` on the path is enough to install it.

    Args:
        folder: where its files go.
        name: of the distribution.
        code: of the module of hooks.
        module: its name; that of the distribution with underscores if left out.
        entry: name of the entry point; that of the module if left out.
    """
    module = module or name.replace("-", "_")
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[unfoldkit]\n{entry or module} = {module}\n", encoding="utf-8")
    (folder / f"{module}.py").write_text(code, encoding="utf-8")
    return folder


def kind_code(name: str, body: str = "", **verbs: str) -> str:
    """Return the code of a plugin with one kind and a spec of the envelope alone; ``body`` follows its hook."""
    given = "".join(f", {verb}={reference!r}" for verb, reference in verbs.items())
    return (
        "from unfoldkit.api import Kind, hookimpl\n\n\n@hookimpl\ndef unfold_kinds():\n"
        f'    yield Kind(name="{name}", summary="for tests", spec="unfoldkit.spec.base:Spec"{given})\n\n\n{body}\n'
    )
