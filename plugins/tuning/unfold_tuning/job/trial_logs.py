"""Iteration times from the record of an earlier run: that of an experiment tracker, or a table of checkpoints."""

from __future__ import annotations

import calendar
import contextlib
import datetime as dt
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from unfold_tuning.job.experiment_trackers import count_epochs, list_tracked_steps, read_logged_metrics
from unfold_tuning.job.record_rows import read_record_rows
from unfoldkit.api import CsvRow, did_you_mean, format_count, format_duration, format_percent, user_error
from unfoldkit.arrivals.readers.timestamps import UNITS_S, split_unit

DEFAULT_COLUMNS = {
    "trial": (
        *(
            "trial_id",
            "trial",
            "trialjobid",
            "trial_index",
            "config_id",
            "run_id",
            "run_uuid",
            "run",
            "run_name",
            "hp_id",
            "experimentkey",
        ),
        *("number", "name", "id"),
    ),
    "iteration": (
        *("training_iteration", "epoch", "epochs", "iteration", "iter", "step", "_step", "global_step", "sequence"),
        *("st_worker_iter", "budget", "fidelity"),
    ),
    "elapsed": (
        *(
            "time_total_s",
            "elapsed_s",
            "elapsed",
            "elapsed_time",
            "total_time",
            "st_worker_time",
            "_runtime",
            "runtime",
        ),
        *("relative_time", "train_time", "duration", "wall_time", "_timestamp", "timestamp", "datetime"),
    ),
    "seconds": ("time_this_iter_s", "seconds", "iteration_s", "epoch_s", "epoch_time", "time"),
}
"""Column names that Ray Tune, Weights & Biases, Optuna, TensorBoard, MLflow, NNI, Syne Tune, SMAC and people use.

In lower case, with underscores for spaces and without units in brackets.
"""
SPANS = (
    *(("start_time", "end_time"), ("starttime", "endtime"), ("datetime_start", "datetime_complete")),
    *(("started_at", "ended_at"), ("started_at", "finished_at"), ("book_time", "refresh_time")),
)
"""Columns of the begin and the end of a trial in MLflow, Optuna, Hyperopt and others, if no other times are known."""
DURATION_COLUMN = "duration"
"""Column of the difference of the two, which pandas writes to JSON as milliseconds, without their unit."""
SPAN_COLUMN = "seconds from begin to end"
"""Column that is added with the difference of the two."""
METRIC_COLUMNS = ("key", "tag", "metric", "metric_name", "variable")
"""Columns that name which of several metrics of an iteration a row holds."""
FINER_COUNTERS = ("batch", "batch_idx", "batch_index")
"""Columns that count within an iteration."""
RAY_FILES = ("progress.csv", "result.json")
_UNIT = re.compile(r"\s*[\[(][^\])]*[\])]\s*$")
EMPTY_CELLS = ("", "none", "null", "na", "n/a")
NOT_FINITE_CELLS = ("nan", "nat", "inf", "+inf", "-inf", "infinity", "+infinity", "-infinity")
CLOCK_S = 1e8
"""Elapsed times from here on are those of a clock, in seconds since 1970: no trial takes three years."""
CLOCK_COLUMNS = ("wall_time", "_timestamp", "timestamp", "datetime", "time_of_day", "clock")
"""Names of columns in which ``14:05:12`` is a time of the day, not a duration."""
CLOCK_SCALES = ((1e17, 1e9), (1e14, 1e6), (1e11, 1e3))
"""Those from the first number on are in nano-, micro- or milliseconds, so many a second."""
MAX_CLOCK_FALL_S = 60.0
"""A clock that goes back further was changed: in autumn, a local time repeats an hour."""
CHANGE_MONTHS = (3, 4, 9, 10, 11)
"""Months in which daylight saving time begins or ends somewhere, early on a Sunday."""
CHANGE_ENDS = dt.time(4)
"""By then clocks have been changed."""
CHANGED_S = 3600.0
"""By so much."""
RESTART_FRACTION = 0.5
"""Elapsed times that fall below this fraction of those before count from a restart; less is noise of a surrogate."""
SHORT_UNITS_S = {"mins": 60.0, "h": 3600.0, "hr": 3600.0, "hrs": 3600.0}
"""Seconds of units with which the name of a duration may end, but hardly that of a time of arrival."""
PAUSE_FACTOR = 50.0
"""An iteration that took more than this many times the median one probably contains a pause of the whole run."""
MAX_LONGER = 10.0
"""Trials of a record that ran more than so many times the iterations of the search may count batches, not epochs."""
MAX_SHOWN = 40
"""Characters of a trial's name in a report; a folder's trials have the names of their files."""
MIN_RISING = 4
"""Times that rise over so many rows of every trial, or one less in so many trials, may count from its begin."""
MAX_FALLS = 0.2
"""Times that fall more often than this from row to row are not counted from the begin of a trial."""
MAX_REWINDS = 0.25
"""Where iterations fall more often than this from row to row, the rows are those of several trials."""
MIN_GROWTH = 0.5
"""Times that grow with less than this power of the iterations between two rows are those of one iteration."""
MIN_RESUMED = 3
MAX_RESUMED = 1 / 3
"""A record began later if its first row counts more than so many steps, but takes less than this part of their time."""
STATE_COLUMNS = ("state", "status")
UNFINISHED = (
    *("pruned", "fail", "failed", "running", "waiting", "killed", "crashed", "error", "errored", "stopped"),
    *("early_stopped", "early-stopped", "canceled", "cancelled", "preempted", "pending", "queued", "timeout"),
)
"""States of trials that ran fewer iterations than a finished one, as Optuna, MLflow, W&B, NNI and Ax write them."""
_TIMEDELTA = re.compile(r"(?:(\d+) days? )?(\d+):(\d\d):(\d\d(?:\.\d+)?)")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialLogSource:
    """A record and the meaning of its columns, as the spec's ``profile.recorded`` gives them.

    Attributes:
        path: The file or folder as the spec names it.
        trial: Columns that identify a trial; the default names if empty, as for the other columns.
        iteration: Column of the iterations that a trial has run.
        elapsed: Column of the seconds since a trial began, or of the time of a clock.
        seconds: Column of the seconds of one iteration.
        unit: Unit of the numbers in the column of times, a key of ``UNITS_S``; if unknown, its name decides.
        iters: Iterations between two rows if no column counts them.
        where: Values by column that a row must have.
        key: The key of the spec that names the record, for messages.
    """

    path: str
    trial: tuple[str, ...] = ()
    iteration: tuple[str, ...] = ()
    elapsed: tuple[str, ...] = ()
    seconds: tuple[str, ...] = ()
    unit: str | None = None
    iters: int = 1
    where: Mapping[str, str | int] = field(default_factory=dict)
    key: str = "profile.recorded"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialLog:
    """The steps of a record.

    Attributes:
        steps: By trial, the iterations run by the end of each step and the mean seconds of one of its iterations.
        skipped: Rows with an iteration or time that is nan or infinite, as ``file, line N``.
        shifted: Rows with a date of unknown offset, after a night in which clocks may have been changed.
        counts_epochs: Whether its iterations are epochs, by a metric that counts them beside its steps.
    """

    steps: Mapping[str, Sequence[tuple[float, float]]]
    skipped: tuple[str, ...] = ()
    shifted: tuple[str, ...] = ()
    counts_epochs: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialLogSummary:
    """Iteration times of a record: mean and standard deviation in seconds, and the variation between trials.

    ``pause`` describes an iteration that probably contains one; empty if none does. ``last`` is the largest number of
    iterations that a trial had run. ``counts_epochs`` is that of the log.
    """

    mean_s: float
    std_s: float
    trial_cv: float
    trials: int
    steps: int
    skipped: tuple[str, ...] = ()
    shifted: tuple[str, ...] = ()
    pause: str = ""
    last: float = 0.0
    counts_epochs: bool = False

    def describe(self, planned_iters: int) -> str:
        """Describe the record in one line; ``planned_iters`` are those of the longest trial of the search."""
        rows = f"{format_count(self.steps, 'step')} of {format_count(self.trials, 'trial')}"
        times = f"an iteration takes {format_duration(self.mean_s)}, trials vary by {format_percent(self.trial_cv)}"
        times += "; by its metric of epochs, an iteration is one" if self.counts_epochs else ""
        times += f"; {self.pause}" if self.pause else ""
        if self.last > MAX_LONGER * planned_iters:
            times += f"; its trials ran up to {self.last:,.0f} iterations, those of the search run {planned_iters:,}: "
            times += "an iteration may be something else here"
        if self.shifted:
            count = format_count(len(self.shifted), "time")
            times += f"; {count} may be an hour off, as clocks may have changed that Sunday night "
            times += f"(the first in {self.shifted[0]}): write dates with an offset, such as 2026-11-01T01:30:00-05:00"
        if not self.skipped:
            return f"{rows}: {times}"
        count = format_count(len(self.skipped), "row")
        return f"{rows}: {times}; {count} without a finite time skipped, the first in {self.skipped[0]}"


@dataclass(frozen=True, slots=True)
class _Timing:
    """The columns that give the times of one table; a time may be that of one iteration, although rows skip some."""

    count: Sequence[str]
    time: str
    is_elapsed: bool
    iters_per_row: int
    unit_s: float | None
    is_of_one: bool = False


@dataclass(frozen=True, slots=True)
class _Checkpoint:
    """A row with the iterations that its trial had run by then, and its time in seconds; nan without one.

    ``rewound_from_s`` is the time of the row before it if the trial went back to a checkpoint between the two.
    """

    iters: float
    row: CsvRow
    seconds: float
    rewound_from_s: float = math.nan

    @property
    def is_timed(self) -> bool:
        """Whether the row has a time."""
        return not math.isnan(self.seconds)


def summarize_trial_log(log: TrialLog, path: Path) -> TrialLogSummary:
    """Summarize the iteration times of a record; every trial counts once, however far it ran.

    Raises:
        UnfoldError: The iterations take no time.
    """
    by_trial = [[seconds for _, seconds in steps] for steps in log.steps.values()]
    means = np.array([np.mean(seconds) for seconds in by_trial])
    within = [np.std(seconds, ddof=1) for seconds in by_trial if len(seconds) > 1]
    if means.mean() <= 0:
        raise user_error("the recorded iterations take no time", file=str(path), key="profile.recorded")
    return TrialLogSummary(
        mean_s=float(means.mean()),
        std_s=float(np.mean(within)) if within else 0.0,
        trial_cv=float(means.std(ddof=1) / means.mean()) if len(means) > 1 else 0.0,
        trials=len(means),
        steps=sum(len(seconds) for seconds in by_trial),
        skipped=log.skipped,
        shifted=log.shifted,
        pause=_describe_pause(log),
        last=max(end for steps in log.steps.values() for end, _ in steps),
        counts_epochs=log.counts_epochs,
    )


def _describe_pause(log: TrialLog) -> str:
    """Describe the longest iteration if it probably contains a pause; that with which a trial begins is a warm-up."""
    later = [(seconds, end, trial) for trial, steps in log.steps.items() for end, seconds in steps[1:]]
    if not later:
        return ""
    seconds, end, trial = max(later)
    factor = seconds / max(float(np.median([item[0] for item in later])), 1e-9)
    if factor <= PAUSE_FACTOR:
        return ""
    where = f"iteration {end:g} of trial {trial[-MAX_SHOWN:]}" if trial else f"iteration {end:g}"
    return f"{where} took {format_duration(seconds)}, {factor:,.0f} times the median: a pause counts as pace"


def read_trial_log(path: Path, source: TrialLogSource) -> TrialLog:
    """Read every trial's steps: the iterations run by the end of each, and the mean seconds of one of its iterations.

    Raises:
        UnfoldError: The record has no trials or times, or a cell cannot be read.
    """
    by_trial: dict[str, list[tuple[float, float]]] = {}
    skipped: list[str] = []
    shifted: list[str] = []
    is_of_ray = path.is_dir() and any(next(path.rglob(name), None) for name in RAY_FILES)
    if metrics := [] if is_of_ray else read_logged_metrics(path):
        log = _require_steps(list_tracked_steps(metrics, source.where, path, source.key), path, source.key)
        return replace(log, counts_epochs=count_epochs(metrics, source.where))
    for file in _list_files(path):
        for trial, end, seconds in _read_iterations(file, source, skipped, shifted, is_single_trial=path.is_dir()):
            by_trial.setdefault(trial, []).append((end, seconds))
    log = _require_steps(by_trial, path, source.key)
    return replace(log, skipped=tuple(skipped), shifted=tuple(shifted))


def _require_steps(steps: Mapping[str, Sequence[tuple[float, float]]], path: Path, key: str) -> TrialLog:
    if not steps:
        raise user_error("no iteration of any trial is recorded here", file=str(path), key=key)
    return TrialLog(steps=steps)


def _list_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    for name in RAY_FILES:
        files = sorted(path.rglob(name))
        if files:
            return files
    files = sorted(path.glob("*.csv"))
    if not files and len({file.name for file in path.rglob("*.csv")}) == 1:
        files = sorted(path.rglob("*.csv"))
    if files:
        return files
    hint = "name a table, a folder of Ray Tune, TensorBoard or MLflow, or one with a CSV file for each trial"
    raise user_error("no record of trials in this folder", file=str(path), hint=hint)


def _read_iterations(
    path: Path, source: TrialLogSource, skipped: list[str], shifted: list[str], *, is_single_trial: bool
) -> Iterator[tuple[str, float, float]]:
    """Yield ``(trial, iterations run, seconds of an iteration)`` of a file; list rows without, or after a clock change.

    A file of a single trial may repeat iterations after a restart; the last repetition counts.
    """
    rows = [
        row for row in read_record_rows(path) if all(row.get(name) == str(cell) for name, cell in source.where.items())
    ]
    if not rows:
        return
    # JSON rows omit nulls, so the first row may lack columns
    columns = list(dict.fromkeys(itertools.chain.from_iterable(row.cells for row in rows)))
    is_row_a_trial = _has_no_times_but_spans(source, columns) and _add_spans(rows, columns, shifted)
    if is_row_a_trial:
        source = replace(source, elapsed=(SPAN_COLUMN,))
        columns.append(SPAN_COLUMN)
    trial_columns = _find_columns(source, "trial", columns)
    by_trial: dict[str, list[CsvRow]] = {}
    for row in rows:
        trial = str(path) if is_single_trial else " ".join(row.get(name) for name in trial_columns)
        trial += f" line {row.line}" if is_row_a_trial else ""
        by_trial.setdefault(trial, []).append(row)
    timing = _find_timing(path, source, columns)
    by_checkpoints = {trial: _read_checkpoints(trial_rows, timing, skipped) for trial, trial_rows in by_trial.items()}
    if not (timing.is_elapsed or source.seconds) and _holds_clock(by_checkpoints.values(), timing.time):
        timing = replace(timing, is_elapsed=True)
    _require_clear_times(by_checkpoints.values(), rows, timing, source)
    if not timing.is_elapsed and timing.count:
        timing = replace(timing, is_of_one=_has_times_of_one(by_checkpoints.values()))
    for trial, checkpoints in by_checkpoints.items():
        ordered = (
            _drop_repeated(checkpoints)
            if is_single_trial or _is_rewound(checkpoints, timing)
            else sorted(checkpoints, key=lambda checkpoint: checkpoint.iters)
        )
        for end, seconds in _compute_iteration_seconds(trial, ordered, timing, shifted):
            yield trial, end, seconds


def _has_no_times_but_spans(source: TrialLogSource, columns: Sequence[str]) -> bool:
    """Return whether the times of a table are at most those from begin to end of its trials, as durations are."""
    times = [name for role in ("elapsed", "seconds") for name in _find_columns(source, role, columns)]
    is_named = bool(source.elapsed or source.seconds or source.unit)
    return not is_named and all(_normalize_name(name) == DURATION_COLUMN for name in times)


def _add_spans(rows: Sequence[CsvRow], columns: Sequence[str], shifted: list[str]) -> bool:
    """Add the seconds from begin to end to the rows that have both; return whether there are such columns.

    Raises:
        UnfoldError: A trial ends before it begins.
    """
    by_name = {_normalize_name(name): name for name in reversed(columns)}
    span = next((pair for pair in SPANS if set(pair) <= set(by_name)), None)
    for row in rows if span else ():
        begin, end = (by_name[name] for name in span or ())
        is_known = all(row.get(name).strip().lower() not in (*EMPTY_CELLS, *NOT_FINITE_CELLS) for name in (begin, end))
        row.cells[SPAN_COLUMN] = ""
        if is_known:
            begin_s, end_s = _parse_seconds(row, begin), _parse_seconds(row, end)
            _require_no_clock_change(row, end, begin_s - end_s, begin_s, row[begin])
            _note_shift(row, end, begin_s, end_s, shifted)
            row.cells[SPAN_COLUMN] = str(max(0.0, end_s - begin_s))
    return span is not None


def _find_timing(path: Path, source: TrialLogSource, columns: Sequence[str]) -> _Timing:
    count = _find_columns(source, "iteration", columns)
    elapsed = _find_columns(source, "elapsed", columns)
    seconds = () if elapsed else _find_columns(source, "seconds", columns)
    if not (elapsed or seconds):
        hint = (
            "profile.recorded.elapsed names the seconds since a trial began, or profile.recorded.seconds; "
            f"there are {', '.join(columns[:12])}"
        )
        raise user_error("no column of times is known here", file=str(path), key=f"{source.key}.elapsed", hint=hint)
    unit_s = None if source.unit is None else UNITS_S[source.unit]
    return _Timing(count, (elapsed or seconds)[0], bool(elapsed), source.iters, unit_s)


def _require_clear_times(
    trials: Iterable[Sequence[_Checkpoint]], rows: Sequence[CsvRow], timing: _Timing, source: TrialLogSource
) -> None:
    """Require that the times mean what the names of their columns say.

    Raises:
        UnfoldError: They do not.
    """
    trials = [sorted(trial, key=lambda checkpoint: checkpoint.iters) for trial in trials]
    if not timing.count:
        _require_finished(rows, timing.time, source.key)
    if timing.is_elapsed:
        _require_total(trials, timing.time, source.key)
    elif not source.seconds:
        _require_no_total(trials, timing.time, source.key)
    elif _holds_clock(trials, timing.time):
        hint = f"write {source.key}.elapsed: {timing.time}, which may be a clock"
        first = next(checkpoint for trial in trials for checkpoint in trial if checkpoint.is_timed)
        raise first.row.wrong("the time of a clock is not that of an iteration", timing.time, hint)


def _require_no_total(trials: Iterable[Sequence[_Checkpoint]], column: str, key: str) -> None:
    """Require that times which no name explains are not those since a trial began.

    Raises:
        UnfoldError: They rise from row to row of every trial.
    """
    rows = [[checkpoint for checkpoint in trial if checkpoint.is_timed] for trial in trials]
    least = MIN_RISING if len(rows) < MIN_RISING else MIN_RISING - 1
    times = [[checkpoint.seconds for checkpoint in trial] for trial in rows if len(trial) >= least]
    if times and all(later > earlier for trial in times for earlier, later in itertools.pairwise(trial)):
        hint = f"write {key}.elapsed: {column} if it counts from the start of a trial, else {key}.seconds: {column}"
        raise rows[0][0].row.wrong("the column rises from row to row of each trial", column, hint)


def _require_total(trials: Iterable[Sequence[_Checkpoint]], column: str, key: str) -> None:
    """Require that times are those since a trial began: such rarely fall.

    Raises:
        UnfoldError: They fall often, or never change: each is probably the time of one iteration.
    """
    rows = [[checkpoint for checkpoint in trial if checkpoint.is_timed] for trial in trials]
    times = [[checkpoint.seconds for checkpoint in trial] for trial in rows if len(trial) >= MIN_RISING]
    pairs = [pair for trial in times for pair in itertools.pairwise(trial)]
    # a restart falls further
    falls = sum(RESTART_FRACTION * earlier <= later < earlier < CLOCK_S for earlier, later in pairs)
    is_constant = any(map(any, times)) and all(earlier == later < CLOCK_S for earlier, later in pairs)
    has_grown = sum(trial[-1] > 2 * trial[0] for trial in times) > len(times) / 2
    if is_constant or (falls > MAX_FALLS * len(pairs) and not has_grown):
        hint = f"write {key}.seconds: {column} if it is the time of one iteration"
        message = "the column does not rise from row to row of a trial"
        raise next(trial[0].row for trial in rows if len(trial) >= MIN_RISING).wrong(message, column, hint)


def _has_times_of_one(trials: Iterable[Sequence[_Checkpoint]]) -> bool:
    """Return whether each time is that of one iteration, and not of all since the row before.

    Times of all grow with the iterations between two rows. Where rows are equally far apart, nothing shows it: then
    the column holds what its name says, the time of an iteration. The only row of a trial has the time of all.
    """
    trials = list(trials)
    logs: list[tuple[float, float]] = []
    for trial in trials:
        done = 0.0
        for checkpoint in sorted(trial, key=lambda checkpoint: checkpoint.iters):
            gap, done = checkpoint.iters - done, checkpoint.iters
            if gap > 0 and checkpoint.seconds > 0:
                logs.append((math.log(gap), math.log(checkpoint.seconds)))
    gaps, seconds_logs = np.array(logs).reshape(-1, 2).T
    if len(set(gaps)) < 2:
        return max(map(len, trials)) > 1
    return float(np.polyfit(gaps, seconds_logs, 1)[0]) < MIN_GROWTH


def _require_finished(rows: Sequence[CsvRow], time: str, key: str) -> None:
    """Require that rows which do not state their iterations are all of finished trials, or that none is.

    Raises:
        UnfoldError: Some trials ended early: divided by the iterations of a finished one, their times are too short.
    """
    timed = [row for row in rows if row.get(time).strip().lower() not in (*EMPTY_CELLS, *NOT_FINITE_CELLS)]
    column = next((name for name in timed[0].cells if _normalize_name(name) in STATE_COLUMNS), "") if timed else ""
    states = {row.get(column): row for row in reversed(timed) if row.get(column)} if column else {}
    finished = [state for state in states if _normalize_state(state) not in UNFINISHED]
    unfinished = [row for state, row in states.items() if state not in finished]
    if finished and unfinished:
        hint = f"write {key}.where: {{{column}: {finished[0]}}}, or {key}.iteration with what each trial has run"
        message = f"a trial that is {unfinished[0][column]} did not run all iterations"
        raise unfinished[0].wrong(message, column, hint)


def _normalize_state(state: str) -> str:
    """Normalize a state: ``TrialState.PRUNED`` is ``pruned``."""
    return state.rsplit(".", 1)[-1].strip().lower()


def _read_checkpoints(rows: Sequence[CsvRow], timing: _Timing, skipped: list[str]) -> list[_Checkpoint]:
    """Read the rows that have a time, each with the iterations that its trial had run by then.

    Rows with a time that is not finite count iterations only, and are listed as skipped.
    """
    checkpoints: list[_Checkpoint] = []
    required = (*timing.count, timing.time)
    complete = (row for row in rows if all(row.get(name).lower() not in EMPTY_CELLS for name in required))
    for n, row in enumerate(complete, 1):
        is_finite = [row[name].strip().lower() not in NOT_FINITE_CELLS for name in required]
        if not all(is_finite):
            skipped.append(f"{row.path.name}, line {row.line}")
        if is_finite[0] or not timing.count:
            iters = row.number(timing.count[0], least=0) if timing.count else float(n * timing.iters_per_row)
            seconds = _parse_seconds(row, timing.time, timing.unit_s) if is_finite[-1] else math.nan
            checkpoints.append(_Checkpoint(iters, row, seconds))
    return checkpoints


def _is_rewound(checkpoints: Sequence[_Checkpoint], timing: _Timing) -> bool:
    """Return whether a trial went back to a checkpoint a few times: its iterations fall then, and its times do not."""
    rows = [checkpoint for checkpoint in checkpoints if checkpoint.is_timed]
    falls = sum(later.iters < earlier.iters for earlier, later in itertools.pairwise(rows))
    if not (timing.is_elapsed and timing.count) or not 0 < falls <= MAX_REWINDS * len(rows):
        return False
    times = [checkpoint.seconds for checkpoint in rows]
    return times == sorted(times)


def _drop_repeated(checkpoints: Sequence[_Checkpoint]) -> list[_Checkpoint]:
    """Drop lost work: after a failure a trial returns to a checkpoint and continues the same record."""
    valid: list[_Checkpoint] = []
    for number, checkpoint in enumerate(checkpoints):
        before = checkpoints[max(0, number - 1)]
        is_rewound = before.iters > checkpoint.iters and before.is_timed
        while valid and valid[-1].iters >= checkpoint.iters:
            valid.pop()
        valid.append(replace(checkpoint, rewound_from_s=before.seconds) if is_rewound else checkpoint)
    return valid


def _compute_iteration_seconds(
    trial: str, checkpoints: Sequence[_Checkpoint], timing: _Timing, shifted: list[str]
) -> Iterator[tuple[float, float]]:
    """Yield the iterations run and the mean seconds of an iteration between every two checkpoints of a trial."""
    done = previous_s = 0.0
    if timing.is_elapsed:
        # the next step covers what a row without a time would have
        checkpoints = _merge_rows([checkpoint for checkpoint in checkpoints if checkpoint.is_timed], timing)
    checkpoints = _count_from_one(checkpoints, timing)
    if timing.is_elapsed and checkpoints and _is_clock(checkpoints[0], timing.time):
        # when its first step began is unknown
        done, previous_s = checkpoints[0].iters, checkpoints[0].seconds
        checkpoints = checkpoints[1:]
    elif checkpoints and checkpoints[0].iters == 0:
        previous_s = checkpoints[0].seconds if timing.is_elapsed else 0.0
        checkpoints = checkpoints[1:]
    elif timing.is_elapsed:
        done = _find_resumed(checkpoints)
    for checkpoint in checkpoints:
        if checkpoint.iters <= done:
            hint = "profile.recorded.trial names the columns that identify a trial; where: {column: value} selects rows"
            message = f"trial {trial or '(all rows)'} reports iteration {checkpoint.iters:g} twice"
            raise checkpoint.row.wrong(message, timing.count[0] if timing.count else "", hint)
        if not checkpoint.is_timed:
            done = checkpoint.iters
            continue
        seconds = checkpoint.seconds
        if timing.is_elapsed and checkpoint.rewound_from_s <= seconds:
            # the work that was lost is not part of this step
            previous_s = checkpoint.rewound_from_s
        if timing.is_elapsed and seconds < previous_s:
            _require_no_clock_change(checkpoint.row, timing.time, previous_s - seconds, previous_s, trial)
            previous_s = 0.0 if seconds < RESTART_FRACTION * previous_s else previous_s
        _note_shift(checkpoint.row, timing.time, previous_s, seconds, shifted)
        step_s = max(0.0, seconds - previous_s) if timing.is_elapsed else seconds
        yield checkpoint.iters, step_s / (1 if timing.is_of_one else checkpoint.iters - done)
        done, previous_s = checkpoint.iters, max(previous_s, seconds)


def _find_resumed(checkpoints: Sequence[_Checkpoint]) -> float:
    """Find the iterations that a trial had run before its record and its elapsed time began; usually none.

    A trial that was resumed in a new record first reports many iterations, after the time of few.
    """
    if len(checkpoints) < MIN_RISING:
        return 0.0
    gap = float(np.median(np.diff([checkpoint.iters for checkpoint in checkpoints])))
    times = [checkpoint.seconds for checkpoint in checkpoints]
    step_s, first = float(np.median(np.diff(times))), checkpoints[0].iters
    is_resumed = gap > 0 and first > MIN_RESUMED * gap and times[0] < MAX_RESUMED * step_s * first / gap
    return first - gap if is_resumed else 0.0


def _merge_rows(checkpoints: Sequence[_Checkpoint], timing: _Timing) -> Sequence[_Checkpoint]:
    """Keep the last row of each iteration, where a trial has several that a logger wrote while it ran.

    Such rows differ in what they hold: other metrics are filled, or a finer counter goes on. Rows that do not differ
    are those of several trials, and stay.
    """
    if not timing.count or len({checkpoint.iters for checkpoint in checkpoints}) == len(checkpoints):
        return checkpoints
    seen = {(checkpoint.iters, *_describe_row(checkpoint.row, timing.count[0])) for checkpoint in checkpoints}
    times = [checkpoint.seconds for checkpoint in checkpoints]
    if len(seen) < len(checkpoints) or any(later < earlier for earlier, later in itertools.pairwise(times)):
        return checkpoints
    return list({checkpoint.iters: checkpoint for checkpoint in checkpoints}.values())


def _describe_row(row: CsvRow, count: str) -> tuple[frozenset[str], tuple[str, ...]]:
    """Describe what a row holds: the columns that are filled, and the cells of finer counters and names of metrics."""
    finer = {*DEFAULT_COLUMNS["iteration"], *FINER_COUNTERS, *METRIC_COLUMNS}
    filled = [name for name, cell in row.cells.items() if cell.strip().lower() not in (*EMPTY_CELLS, "nan")]
    return frozenset(filled), tuple(row[name] for name in filled if name != count and _normalize_name(name) in finer)


def _require_no_clock_change(row: CsvRow, column: str, fall_s: float, before_s: float, trial: str) -> None:
    """Require that a time which goes back is the elapsed one of a surrogate or a run that was resumed.

    Raises:
        UnfoldError: It is that of a clock, or a time of day.
    """
    is_clock = before_s >= CLOCK_S and fall_s > MAX_CLOCK_FALL_S
    if is_clock or (":" in row[column] and fall_s > (1 - RESTART_FRACTION) * before_s):
        hint = "write dates with an offset, such as 2026-11-01T01:30:00-05:00, or the seconds since a trial began"
        hint += "" if trial else "; profile.recorded.trial names the columns that identify a trial"
        raise row.wrong(f"the time goes back by {format_duration(fall_s)}", column, hint)


def _note_shift(row: CsvRow, column: str, begin_s: float, end_s: float, shifted: list[str]) -> None:
    """Note a row if a clock may have been changed before it: dates of unknown offset are an hour or more apart.

    Of those that are closer, most go back where an hour is repeated, which is an error.
    """
    text = row[column].strip()
    if begin_s < CLOCK_S or end_s - begin_s < CHANGED_S or text.isdigit():
        return
    with contextlib.suppress(ValueError):
        if dt.datetime.fromisoformat(text).tzinfo is None and _is_clock_changed(begin_s, end_s):
            shifted.append(f"{row.path.name}, line {row.line}")


def _is_clock_changed(begin_s: float, end_s: float) -> bool:
    """Return whether clocks may be changed between two times: there is a Sunday night of such a month."""
    begin, end = (dt.datetime.fromtimestamp(seconds, dt.UTC) for seconds in (begin_s, end_s))
    days = (begin.date() + dt.timedelta(days=day) for day in range((end.date() - begin.date()).days + 1))
    sundays = (day for day in days if day.weekday() == calendar.SUNDAY and day.month in CHANGE_MONTHS)
    return any(begin < dt.datetime.combine(day, CHANGE_ENDS, dt.UTC) for day in sundays)


def scale_clock(seconds: float) -> float:
    """Convert the time of a clock in milli-, micro- or nanoseconds to seconds; others are in seconds."""
    return seconds / next((per_second for least, per_second in CLOCK_SCALES if seconds >= least), 1.0)


def _find_unit_s(column: str, columns: Iterable[str]) -> float:
    """Find the seconds of the unit with which the name of a column ends; beside ``time_max``, ``time_min`` has none."""
    unit_s = split_unit(column)[1]
    if unit_s is not None:
        return unit_s
    unit = re.split(r"[^a-z]+", column.lower().rstrip(" )]"))[-1]
    if unit == "min":
        stem = column.lower().removesuffix(unit)
        return 1.0 if any(name.lower() in (f"{stem}max", f"{stem}mean", f"{stem}avg") for name in columns) else 60.0
    return SHORT_UNITS_S.get(unit, 1.0)


def _count_from_one(checkpoints: Sequence[_Checkpoint], timing: _Timing) -> Sequence[_Checkpoint]:
    """Count iterations from 1 where they are numbered from 0: the row of number 0 then took about as long as another.

    Otherwise it is what a trial reported before its first iteration.
    """
    if len(checkpoints) < 2 or checkpoints[0].iters != 0 or not all(item.is_timed for item in checkpoints[:2]):
        return checkpoints
    first, second = (checkpoint.seconds for checkpoint in checkpoints[:2])
    step_s = (second - first) / checkpoints[1].iters if timing.is_elapsed else second
    if _is_clock(checkpoints[0], timing.time) or 2 * first < step_s or not first:
        return checkpoints
    return [replace(checkpoint, iters=checkpoint.iters + 1) for checkpoint in checkpoints]


def _holds_clock(trials: Iterable[Sequence[_Checkpoint]], column: str) -> bool:
    """Return whether a column has times of a clock: no iteration takes three years."""
    return any(checkpoint.is_timed and _is_clock(checkpoint, column) for trial in trials for checkpoint in trial)


def _is_clock(checkpoint: _Checkpoint, column: str) -> bool:
    """Return whether a time is that of a clock: since 1970, or the time of a day in a column of such a name."""
    is_of_day = ":" in checkpoint.row[column] and _normalize_name(column) in CLOCK_COLUMNS
    return is_of_day or checkpoint.seconds >= CLOCK_S


def _parse_seconds(row: CsvRow, column: str, unit_s: float | None = None) -> float:
    """Parse a cell as seconds; Optuna writes ``0 days 00:01:12.5``, and a clock a date or seconds since 1970.

    Args:
        row: Its row.
        column: Its column.
        unit_s: Seconds of the unit of a number; if unknown, the column's name or the size of the number decides.
    """
    match = _TIMEDELTA.fullmatch(row[column].strip())
    if match is None:
        with contextlib.suppress(ValueError):
            date = dt.datetime.fromisoformat(row[column].strip())
            # a number of eight digits is one too
            if not row[column].strip().isdigit():
                return (date if date.tzinfo else date.replace(tzinfo=dt.UTC)).timestamp()
        if not row[column].strip()[:1].isdigit() or not set(row[column]) & set("/:_"):
            seconds = row.number(column, least=0)
            if unit_s is not None:
                return seconds * unit_s
            return scale_clock(seconds) if seconds >= CLOCK_SCALES[-1][0] else seconds * _find_unit_s(column, row.cells)
        raise row.wrong(f"{row[column][:40]!r} is not a time", column, "write 2026-05-01T12:00:00+02:00, or seconds")
    return float(match[1] or 0) * 86400 + float(match[2]) * 3600 + float(match[3]) * 60 + float(match[4])


def _find_columns(source: TrialLogSource, role: str, columns: Sequence[str]) -> tuple[str, ...]:
    """Find the columns of a role: those that the spec names, or the first default name that the table has."""
    names: tuple[str, ...] = getattr(source, role)
    for name in names:
        if name not in columns:
            hint = did_you_mean(name, columns) or f"there are {', '.join(columns[:12])}"
            raise user_error(f"no column {name!r}", file=source.path, key=f"{source.key}.{role}", hint=hint)
    by_lower_name = {_normalize_name(name): name for name in reversed(columns)}
    return names or tuple(by_lower_name[name] for name in DEFAULT_COLUMNS[role] if name in by_lower_name)[:1]


def _normalize_name(name: str) -> str:
    """Normalize the name of a column: ``Wall time (s)`` is ``wall_time``."""
    return _UNIT.sub("", name.strip()).lower().replace(" ", "_").replace("-", "_")
