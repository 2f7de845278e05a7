"""Iteration times from the record of an earlier run: a folder of Ray Tune, or a table with a row a checkpoint."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unfold_tuning.format import counted, share, span
from unfold_tuning.schema.models import MOST_VARIATION, Iteration, Recorded, TuningSpec
from unfoldkit.api import CsvRow, Run, csv_rows, did_you_mean, fail

NAMES = {
    "trial": ("trial_id", "trial", "config_id", "run_id", "run", "number", "name", "id"),
    "iteration": ("training_iteration", "iteration", "iter", "epoch", "step", "_step"),
    "elapsed": ("time_total_s", "elapsed_s", "elapsed", "_runtime", "runtime", "duration"),
    "seconds": ("time_this_iter_s", "seconds", "iteration_s", "epoch_s", "time"),
}
"""What Ray Tune, Weights & Biases, Optuna and people call their columns, in lower case."""
RAY = ("progress.csv", "result.json")
LINES = (".jsonl", ".ndjson", ".json", ".jsonl.gz", ".ndjson.gz")
FORM = "one object a line, or one array of objects"
EMPTY = ("", "nan", "none")
_SPAN = re.compile(r"(?:(\d+) days? )?(\d+):(\d\d):(\d\d(?:\.\d+)?)")


@dataclass(frozen=True, slots=True)
class Step:
    """Seconds of one iteration, as the mean of those since the row before."""

    trial: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Record:
    """A record's iteration on so many accelerators as its trials had: mean and deviation in seconds, and of trials."""

    mean: float
    std: float
    spread: float
    trials: int
    steps: int

    @property
    def told(self) -> str:
        """The record in a line."""
        read = f"{counted(self.steps, 'step')} of {counted(self.trials, 'trial')}"
        return f"{read}: an iteration takes {span(self.mean)}, trials vary by {share(self.spread)}"


def resolved(spec: TuningSpec, run: Run) -> tuple[TuningSpec, tuple[tuple[str, str], ...]]:
    """Return the spec with the times of its record in the place of the record, and a line that tells of them.

    Raises:
        UnfoldError: the record cannot be read, or does not tell trials and times.
    """
    if spec.profile is None or spec.profile.recorded is None:
        return spec, ()
    given, gains = spec.profile.recorded, spec.profile.speedup
    if given.accelerators not in gains:
        what = f"the recorded trials had {counted(given.accelerators, 'accelerator')}, of which speedup says nothing"
        raise fail(what, key="profile.recorded.accelerators", hint="write profile.speedup: {1: 1, 2: 1.9}")
    found = read(run.path(given.path, key="profile.recorded.path"), given)
    gain = gains[given.accelerators]
    iteration = Iteration.model_validate({"mean": _time(found.mean * gain), "std": _time(found.std * gain)})
    changes: dict[str, object] = {"iteration": iteration, "recorded": None}
    if "trial_spread" not in spec.profile.model_fields_set:
        changes["trial_spread"] = round(min(MOST_VARIATION, found.spread), 4)
    line = ("record", f"{given.path}, {found.told}")
    return spec.model_copy(update={"profile": spec.profile.model_copy(update=changes)}), (line,)


def read(path: Path, given: Recorded) -> Record:
    """Return what a record says of an iteration: each trial counts once, however far it came."""
    files = _files(path)
    steps = [step for file in files for step in _steps(file, given, alone=path.is_dir())]
    if not steps:
        raise fail("no iteration of any trial is recorded here", file=str(path), key="profile.recorded")
    by_trial: dict[str, list[float]] = {}
    for step in steps:
        by_trial.setdefault(step.trial, []).append(step.seconds)
    means = np.array([np.mean(values) for values in by_trial.values()])
    within = [np.std(values, ddof=1) for values in by_trial.values() if len(values) > 1]
    if means.mean() <= 0:
        raise fail("the recorded iterations take no time", file=str(path), key="profile.recorded")
    spread = float(means.std(ddof=1) / means.mean()) if len(means) > 1 else 0.0
    return Record(float(means.mean()), float(np.mean(within)) if within else 0.0, spread, len(means), len(steps))


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    for name in RAY:
        found = sorted(path.rglob(name))
        if found:
            return found
    raise fail(f"no {' or '.join(RAY)} in this folder", file=str(path), hint="name a table, or a folder of Ray Tune")


def _steps(path: Path, given: Recorded, *, alone: bool) -> Iterator[Step]:
    """Yield the steps of a file; ``alone``, it is one trial, of which what ran again counts as it ran last."""
    rows = [row for row in _rows(path) if all(row.get(name) == str(value) for name, value in given.where.items())]
    if not rows:
        return
    # a null is no cell: the first row of JSON may lack what others have
    there = list(dict.fromkeys(itertools.chain.from_iterable(row.cells for row in rows)))
    trials = _named(given, "trial", there)
    groups: dict[str, list[CsvRow]] = {}
    for row in rows:
        groups.setdefault(str(path) if alone else " ".join(row.get(name) for name in trials), []).append(row)
    count, clock = _named(given, "iteration", there), _named(given, "elapsed", there)
    each = () if clock else _named(given, "seconds", there)
    if not (clock or each):
        raise _missing(path, there, "elapsed", "the seconds since a trial began, or profile.recorded.seconds")
    for trial, lines in groups.items():
        steps = _pairs(lines, count, clock or each, given.iters)
        steps = _last(steps) if alone else sorted(steps, key=lambda pair: pair[0])
        yield from _of_trial(trial, steps, count, clock or each, rising=bool(clock))


def _pairs(rows: Sequence[CsvRow], count: Sequence[str], times: Sequence[str], each: int) -> list[tuple[float, CsvRow]]:
    """Return the rows that tell a time, each with how many iterations its trial had run by then."""
    told = [row for row in rows if all(row.get(name).lower() not in EMPTY for name in (*count, *times))]
    return [(row.number(count[0], least=0) if count else float(at * each), row) for at, row in enumerate(told, 1)]


def _last(pairs: Sequence[tuple[float, CsvRow]]) -> list[tuple[float, CsvRow]]:
    """Drop what ran in vain: after a failure Ray Tune goes back to a checkpoint, and logs on in the same file."""
    kept: list[tuple[float, CsvRow]] = []
    for pair in pairs:
        while kept and kept[-1][0] >= pair[0]:
            kept.pop()
        kept.append(pair)
    return kept


def _of_trial(
    trial: str, pairs: Sequence[tuple[float, CsvRow]], count: Sequence[str], times: Sequence[str], *, rising: bool
) -> Iterator[Step]:
    done = before = 0.0
    if pairs and pairs[0][0] == 0:
        before = _seconds(pairs[0][1], times[0]) if rising else 0.0
        pairs = pairs[1:]
    for at, row in pairs:
        if at <= done:
            hint = "profile.recorded.trial names the columns that tell trials apart; where: {column: value} picks rows"
            raise row.wrong(
                f"trial {trial or '(all rows)'} comes twice to iteration {at:g}", count[0] if count else "", hint
            )
        now = _seconds(row, times[0])
        # clocks of surrogates and of resumed runs may fall
        took = max(0.0, now - before) if rising else now
        yield Step(trial, took / (at - done))
        done, before = at, max(before, now)


def _seconds(row: CsvRow, column: str) -> float:
    """Return a cell in seconds; Optuna writes ``0 days 00:01:12.5``."""
    found = _SPAN.fullmatch(row[column].strip())
    if found is None:
        return row.number(column, least=0)
    return float(found[1] or 0) * 86400 + float(found[2]) * 3600 + float(found[3]) * 60 + float(found[4])


def _named(given: Recorded, what: str, there: Sequence[str]) -> tuple[str, ...]:
    """Return the columns that the spec names for something, or those that are called so."""
    said = getattr(given, what)
    names = (said,) if isinstance(said, str) else tuple(said or ())
    for name in names:
        if name not in there:
            hint = did_you_mean(name, there) or f"there are {', '.join(there[:12])}"
            raise fail(f"no column {name!r}", file=given.path, key=f"profile.recorded.{what}", hint=hint)
    lower = {name.lower(): name for name in reversed(there)}
    return names or tuple(lower[name] for name in NAMES[what] if name in lower)[:1]


def _missing(path: Path, there: Sequence[str], what: str, meaning: str) -> Exception:
    hint = f"profile.recorded.{what} names {meaning}; there are {', '.join(there[:12])}"
    return fail("no column of times is known here", file=str(path), key=f"profile.recorded.{what}", hint=hint)


def _rows(path: Path) -> Iterator[CsvRow]:
    """Yield the rows of a table; of an array of JSON they are numbered by its items."""
    if not path.name.endswith(LINES):
        yield from csv_rows(path)
        return
    from unfoldkit.io.csv import open_text

    with open_text(path) as stream:
        array = stream.read(1) == "["
        stream.seek(0)
        if array:
            found: Iterable[tuple[int, object]] = enumerate(_parsed(stream.read(), path, 1), 1)
        else:
            found = ((number, _parsed(line, path, number)) for number, line in enumerate(stream, 1) if line.strip())
        yield from (CsvRow(_cells(item, path, number), path, number) for number, item in found)


def _parsed(text: str, path: Path, number: int) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise fail(f"not JSON: {error}", file=f"{path}:{number}:1", hint=FORM) from error


def _cells(found: object, path: Path, number: int) -> dict[str, str]:
    if not isinstance(found, Mapping):
        raise fail("not a JSON object", file=f"{path}:{number}:1", hint=FORM)
    return {str(name): str(value) for name, value in found.items() if isinstance(value, (str, int, float))}


def _time(seconds: float) -> str:
    return f"{seconds * 1000:.6f} ms"
