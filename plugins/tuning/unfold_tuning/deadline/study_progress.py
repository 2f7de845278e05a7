"""What of a search under a deadline an Optuna study stores, so that the same script continues it after a crash.

All of it are user attributes of the study and its trials: when the search began, its stage and the trials that
continue in it, and which process runs it.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from unfold_tuning.deadline.halving_search import StoredStage
from unfoldkit.api import user_error

SEARCH_KEY = "unfold:search"
BEGAN_KEY = "unfold:began"
STAGE_KEY = "unfold:stage"
OWNER_KEY = "unfold:owner"
IDENTITY_KEY = "unfold:identity"
"""A random name of the study, as another one may have the same name."""
ALIVE_PERIOD_S = 10.0
MIN_SETTLING_S = 0.1
SETTLING_FACTOR = 3.0
"""A process that has locked the study waits this many times as long as that took, then reads which process has it."""
MAX_SILENCE_S = 60.0
"""A process on another host that was silent for so long no longer runs the study."""


@dataclass(slots=True)
class StudyProgress:
    """The stored state of the searches of a study.

    Attributes:
        study: The study.
        wall: The wall clock.
        search: The number of the current search: ``optimize`` may be called several times.
        is_continued: Whether an earlier process began it.
        alive_at: When this process has last stored that it lives.
    """

    study: Any
    wall: Callable[[], float] = time.time
    search: int = 0
    is_continued: bool = False
    alive_at: float = field(default=0.0)

    def lock_study(self) -> None:
        """Lock the study for this thread.

        Raises:
            UnfoldError: Another thread or process that is alive runs it.
        """
        began = self.wall()
        self._require_no_owner()
        self.stay_alive()
        # no storage compares and sets: of processes that saw no owner at the same time, the last to write has the study
        time.sleep(MIN_SETTLING_S + SETTLING_FACTOR * (self.wall() - began))
        self._require_no_owner()
        if IDENTITY_KEY not in self.study.user_attrs:
            self.study.set_user_attr(IDENTITY_KEY, uuid.uuid4().hex[:8])

    def _require_no_owner(self) -> None:
        owner = self.study.user_attrs.get(OWNER_KEY) or {}
        is_here = owner.get("host") == socket.gethostname()
        others = {thread.ident for thread in threading.enumerate()} - {threading.get_ident()}
        is_own = is_here and owner.get("pid") == os.getpid() and owner.get("thread") not in others
        is_alive = (
            _read_process_start(int(owner["pid"])) == owner.get("start")
            if is_here and owner.get("start")
            else self.wall() - float(owner.get("at", 0.0)) < MAX_SILENCE_S
        )
        if owner and not is_own and is_alive:
            raise user_error(
                f"process {owner.get('pid')} on {owner.get('host')} runs this study under a deadline",
                hint="n_jobs runs several trials at once; several processes cannot share a deadline",
            )

    def stay_alive(self) -> None:
        """Store from time to time that this process runs the study."""
        now = self.wall()
        if now - self.alive_at < ALIVE_PERIOD_S:
            return
        self.alive_at = now
        process, start = os.getpid(), _read_process_start(os.getpid())
        thread = threading.get_ident()
        owner = {"host": socket.gethostname(), "pid": process, "start": start, "thread": thread, "at": now}
        self.study.set_user_attr(OWNER_KEY, owner)

    def begin_search(self, now: float) -> float:
        """Begin a search, or continue the one that a crash interrupted; return when it began."""
        stored = self.study.user_attrs.get(BEGAN_KEY)
        self.withdraw_stop()
        if isinstance(stored, dict) and not stored.get("ended"):
            self.search, self.is_continued = int(stored["search"]), True
            return float(stored["began"])
        self.search = int(stored["search"]) + 1 if isinstance(stored, dict) else 1
        self.study.set_user_attr(BEGAN_KEY, {"search": self.search, "began": now, "ended": False})
        return now

    def end_search(self) -> None:
        """Store that the search has ended."""
        stored = dict(self.study.user_attrs[BEGAN_KEY])
        self.study.set_user_attr(BEGAN_KEY, {**stored, "ended": True})

    def release_study(self) -> None:
        """Store that no process runs the study any more."""
        self.study.set_user_attr(OWNER_KEY, {})

    def mark_trial(self, trial: Any, bracket: int) -> None:
        """Mark a trial as one of this search, in a bracket."""
        trial.set_user_attr(SEARCH_KEY, [self.search, bracket])

    def get_bracket(self, trial: Any) -> int:
        """Return the bracket of a trial; the first one if it was killed before it was marked."""
        return int(trial.user_attrs.get(SEARCH_KEY, (self.search, 0))[1])

    def list_trials(self) -> list[Any]:
        """List the trials of this search, by number; a running one without a mark was killed before it had one."""
        from optuna.trial import TrialState

        trials = self.study.get_trials(deepcopy=False)
        return [
            trial
            for trial in trials
            if trial.user_attrs.get(SEARCH_KEY, (0,))[0] == self.search
            or (self.is_continued and trial.state == TrialState.RUNNING and SEARCH_KEY not in trial.user_attrs)
        ]

    def store_stage(self, stage: StoredStage) -> None:
        """Store the stage that begins, and the rungs to which trials may run."""
        value = {
            "search": self.search,
            "stages": list(stage.stages),
            "levels": [[trial, level] for trial, level in stage.levels.items()],
            "stage_trials": list(stage.stage_trials),
            "is_full": stage.is_full,
            "size": stage.size,
            "rungs": stage.rungs,
        }
        self.study.set_user_attr(STAGE_KEY, value)

    def load_stage(self) -> StoredStage:
        """Load the stage of this search; the first one if none is stored."""
        value = self.study.user_attrs.get(STAGE_KEY) or {}
        if value.get("search") != self.search:
            return StoredStage()
        return StoredStage(
            stages=tuple(int(stage) for stage in value["stages"]),
            levels={int(trial): int(level) for trial, level in value["levels"]},
            stage_trials=tuple(int(count) for count in value["stage_trials"]),
            is_full=bool(value["is_full"]),
            size=tuple(value["size"]) if value.get("size") else None,
            rungs=tuple(tuple(rungs) for rungs in value.get("rungs", ())),
        )

    @contextmanager
    def allow_stop(self) -> Iterator[None]:
        """Let ``study.stop()`` be called in this thread, as within ``study.optimize``."""
        flags = getattr(self.study, "_thread_local", SimpleNamespace())
        before = getattr(flags, "in_optimize_loop", False)
        flags.in_optimize_loop = True
        try:
            yield
        finally:
            flags.in_optimize_loop = before

    def withdraw_stop(self) -> None:
        """Withdraw a stop that was requested, as ``study.optimize`` does before it begins."""
        if hasattr(self.study, "_stop_flag"):
            self.study._stop_flag = False  # noqa: SLF001 - as study.optimize does

    def is_stop_requested(self) -> bool:
        """Return whether ``study.stop()`` was called."""
        return bool(getattr(self.study, "_stop_flag", False))


def _read_process_start(process: int) -> str:
    """Read when a process started, in ticks since the boot; empty if it does not run, or on a system without /proc."""
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
