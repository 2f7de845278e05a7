"""What a verb is given beside its spec: seed, clock, progress, log, run directory and engine."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypedDict

from unfoldkit.engines.base import Engine
from unfoldkit.errors import user_error
from unfoldkit.run_directory import RunDir


class Progress(Protocol):
    """Tells a person how far a verb is; on stderr, or nowhere."""

    def __call__(self, step: str, done: int, total: int) -> None:
        """Say that ``done`` of ``total`` of ``step`` are finished."""


def silent(step: str, done: int, total: int) -> None:
    """Report progress to nobody."""


class Options(TypedDict, total=False):
    """The keys of ``Run.options``, by name, so that types tell one that is misspelt."""

    plan: Mapping[str, Any]
    cache: str
    replay: str
    baseline_plan: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Run:
    """The surroundings of one verb. A plugin takes randomness, time and files from here only.

    ``base`` is the folder that paths of the spec are relative to; ``clock`` gives seconds; ``allow_code`` is whether a
    spec may name code. ``options`` holds what the command line says beyond the spec: ``plan``, the saved decision
    (empty without one), and ``cache``, the folder of prices; where it was given, ``replay``, the path of a trace, and
    ``baseline_plan``, the plan that ``--check`` compares with.
    """

    directory: RunDir
    engine: Engine
    seed: int = 0
    base: Path = field(default_factory=Path)
    clock: Callable[[], float] = time.perf_counter
    progress: Progress = silent
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("unfoldkit"))
    options: Options = field(default_factory=Options)
    allow_code: bool = False

    def path(self, text: str, *, key: str = "") -> Path:
        """Return the file or folder that ``text`` names, looked for beside the spec, then in the working folder.

        Raises:
            UnfoldError: there is no such file; the message says where it was looked for.
        """
        tried = list(dict.fromkeys([(self.base / text).absolute(), Path(text).absolute()]))
        for candidate in tried:
            if candidate.exists():
                return candidate
        where = " or ".join(str(candidate) for candidate in tried)
        spec = self._spec_of(text)
        hint = f"unfold train {spec}" if spec else f"looked for {where}"
        raise user_error(f"no such file or folder: {text!r}", key=key, hint=hint)

    def _spec_of(self, text: str) -> Path | None:
        """Return the spec beside this one whose run ``text`` would be."""
        folder, name = Path(text).parts[-2:-1], Path(text).name
        if folder != ("runs",):
            return None
        line = re.compile(rf"^name:\s*['\"]?{re.escape(name)}['\"]?\s*(#.*)?$", re.MULTILINE)
        specs = (path for path in sorted(self.base.glob("*.yaml")) if path.is_file())
        return next((path for path in specs if line.search(path.read_text("utf-8", "replace"))), None)
