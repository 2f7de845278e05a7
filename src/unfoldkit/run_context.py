"""The context of a verb beside its spec: seed, clock, progress, log, run directory and engine."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

from unfoldkit.engines import Engine
from unfoldkit.errors import user_error
from unfoldkit.run_directory import RunDir

if TYPE_CHECKING:
    from unfoldkit.report import Report


class Progress(Protocol):
    """Reports the progress of a verb, on stderr or not at all."""

    def __call__(self, step: str, done: int, total: int) -> None:
        """Report that ``done`` of ``total`` parts of ``step`` are finished; 0 as ``total`` if nothing predicts it."""


def ignore_progress(step: str, done: int, total: int) -> None:
    """Report no progress."""


def ignore_report(report: Report) -> None:
    """Show no report of a verb that still runs."""


def ignore_leftovers(describe: Callable[[], str]) -> None:
    """Show nothing of what a verb would leave behind."""


class Options(TypedDict, total=False):
    """The keys of ``Run.options``, named so that a type checker finds a misspelt one."""

    plan: Mapping[str, Any]
    cache: str
    state: str
    replay: str
    baseline_plan: Mapping[str, Any]
    data: str
    recalibrate: str
    on: str
    target: str
    dry_run: bool


@dataclass(frozen=True, slots=True)
class Run:
    """The context of one verb. A plugin takes randomness, time and files from here only.

    Args:
        directory: The folder of the run.
        engine: Where work runs.
        seed: The seed of every random choice.
        base: The folder that relative paths of the spec start from.
        clock: A clock in s.
        progress: Receives a step, and how much of it is done. The text after the first `` · `` of a step may change,
            such as the money that was spent.
        publish: Shows a report of what a long verb has done so far, on the terminal and to ``unfold report``. Only the
            last one is kept.
        name_leftovers: Receives a function that describes what an end without cleaning up leaves behind, such as rented
            instances: a second Ctrl-C prints it. The function is called in the main thread, between any two lines.
        log: The log of the verb.
        options: ``plan`` is the saved decision (empty without one) and ``cache`` the folder of prices. If the call
            has them: ``replay`` is the path of a trace, ``baseline_plan`` the plan to compare with,
            ``data`` the file to validate on, and ``recalibrate`` the file to refit the plan on.
            ``on`` names the node to measure on, ``target`` the system with the deployment to take charge of, and
            ``dry_run`` is true if nothing may change. ``state`` is the user's folder of records that outlive runs.
        allow_code: Whether the spec may name code.
    """

    directory: RunDir
    engine: Engine
    seed: int = 0
    base: Path = field(default_factory=Path)
    clock: Callable[[], float] = time.perf_counter
    progress: Progress = ignore_progress
    publish: Callable[[Report], None] = ignore_report
    name_leftovers: Callable[[Callable[[], str]], None] = ignore_leftovers
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("unfoldkit"))
    options: Options = field(default_factory=Options)
    allow_code: bool = False

    @property
    def saved_decision(self) -> Any:
        """The decision of the saved plan; None without one."""
        return (self.options.get("plan") or {}).get("decision")

    def path(self, text: str, *, key: str = "") -> Path:
        """Return the file or folder that ``text`` names, beside the spec or in the working folder.

        Args:
            text: The path as written in the spec.
            key: The key of the spec, for the error.

        Raises:
            UnfoldError: No such file exists; the message lists where it was searched.
        """
        candidates = list(dict.fromkeys([(self.base / text).absolute(), Path(text).absolute()]))
        for candidate in candidates:
            if candidate.exists():
                return candidate
        spec = self._find_spec_of_run(text)
        hint = f"unfold train {spec}" if spec else f"searched {' or '.join(map(str, candidates))}"
        raise user_error(f"no such file or folder: {text!r}", key=key, hint=hint)

    def _find_spec_of_run(self, text: str) -> Path | None:
        """Return the spec in the same folder that would create the run ``text``."""
        folder, name = Path(text).parts[-2:-1], Path(text).name
        if folder != ("runs",):
            return None
        name_line = re.compile(rf"^name:\s*['\"]?{re.escape(name)}['\"]?\s*(#.*)?$", re.MULTILINE)
        specs = (path for path in sorted(self.base.glob("*.yaml")) if path.is_file())
        return next((path for path in specs if name_line.search(path.read_text("utf-8", "replace"))), None)
