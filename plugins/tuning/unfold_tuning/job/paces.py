"""Measured trials and earlier jobs, read from the spec, a profile, ledgers and logs, as records of paces."""

from __future__ import annotations

import os
import platform
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from unfold_tuning._types import FloatArray
from unfold_tuning.job.pace_record import PaceRecord, build_features, build_pace_record
from unfold_tuning.job.trial_logs import TrialLogSource, read_trial_log
from unfoldkit.api import user_error
from unfoldkit.safe_io.files import parse_json

LEDGER_NAME = "ledger.sqlite"


def describe_hardware() -> str:
    """Describe the processor and the accelerators of this machine, as the provenance of what is measured on it."""
    cores = f"{os.cpu_count() or 1} x {_read_processor()}"
    devices = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    models = [line.partition(":")[2].strip() for path in devices for line in path.read_text().splitlines()[:1]]
    return " + ".join([cores, *([f"{len(models)} x {models[0]}"] if models else [])])


def _read_processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine() or "unknown processor"


def build_measured_record(
    trials: Sequence[tuple[Sequence[int], Sequence[float], Mapping[str, object]]],
) -> PaceRecord:
    """Build the record of a profile's trials: ends, seconds of an iteration and configuration of each."""
    names = [f"{index:06d}" for index in range(len(trials))]
    steps = {
        name: [(float(end), value) for end, value in zip(ends, seconds, strict=True)]
        for name, (ends, seconds, _) in zip(names, trials, strict=True)
    }
    configs = {name: config for name, (_, _, config) in zip(names, trials, strict=True)}
    return build_pace_record("profile", steps, configs=configs)


def build_planned_features(record: PaceRecord, configs: Sequence[Mapping[str, object]]) -> FloatArray:
    """Build the hyperparameters of all trials of the first stage; those of the profiled ones if they do not match."""
    names, features = build_features(configs)
    return features if names == record.names and len(features) else record.features


def read_history(path: Path, source: TrialLogSource, speedups: Mapping[int, float], recorded: int) -> PaceRecord:
    """Read an earlier job: a run folder of ``unfold train``, or what ``profile.recorded`` accepts.

    Args:
        path: The folder or file.
        source: The meaning of its columns.
        speedups: Speed-up by accelerators per trial.
        recorded: Accelerators of each recorded trial; a run folder records its own.

    Raises:
        UnfoldError: The record cannot be read or has no steps.
    """
    if path.is_dir() and (path / LEDGER_NAME).is_file():
        return _read_ledger(path / LEDGER_NAME, speedups)
    steps = read_trial_log(path, source).steps
    if recorded not in speedups:
        hint = "write profile.speedup: {1: 1, 2: 1.9}"
        raise user_error(f"profile.speedup has no {recorded} accelerators", key=source.key, hint=hint)
    return build_recorded_pace(source.path, steps, speedups[recorded])


def build_recorded_pace(name: str, steps: Mapping[str, Sequence[tuple[float, float]]], speedup: float) -> PaceRecord:
    """Build the record of trials that ran at a speed-up, from the ends and the seconds of their steps."""
    scaled = {trial: [(end, seconds * speedup) for end, seconds in items if end >= 1] for trial, items in steps.items()}
    return build_pace_record(name, {trial: items for trial, items in scaled.items() if items})


def _read_ledger(path: Path, speedups: Mapping[int, float]) -> PaceRecord:
    steps: dict[str, list[tuple[float, float]]] = {}
    scores: dict[str, list[tuple[float, float]]] = {}
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as base:
            rows = base.execute(
                "SELECT trial, iters, metric, seconds, gang FROM steps ORDER BY trial, iters"
            ).fetchall()
            texts = base.execute("SELECT id, config FROM trials").fetchall()
    except sqlite3.Error as error:
        raise user_error(f"the ledger cannot be read: {error}", file=str(path), key="history") from error
    for trial, iters, metric, seconds, workers in rows:
        name = f"{trial:06d}"
        before = steps[name][-1][0] if name in steps else 0.0
        pace = seconds / (iters - before) * speedups.get(workers, float(workers))
        steps.setdefault(name, []).append((float(iters), pace))
        scores.setdefault(name, []).append((float(iters), metric))
    if not steps:
        raise user_error("this run has no finished iteration", file=str(path), key="history")
    configs = {f"{trial:06d}": parse_json(text, str(path)) for trial, text in texts}
    return build_pace_record(str(path), steps, scores, configs)
