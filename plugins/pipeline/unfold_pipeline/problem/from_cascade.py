"""A cascade's run as the stages of a pipeline: its models, and the routes that its cases took.

The two kinds meet in files only: ``exits.json`` describes the models and the execution paths, ``plan.yaml`` the
cascade. Each file is verified against its hash in the run's manifest, and so is every model.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unfoldkit.api import Run, RunDir, user_error
from unfoldkit.safe_io.files import parse_object
from unfoldkit.spec.yaml_reader import decode_text, parse

EXITS_FILE = "exits.json"
PLAN_FILE = "plan.yaml"
SCHEMA = "unfold_cascade.exits/1"
ROUTES_FILE = "routes.csv"
KEY = "stages.from"
TIME_SERIES_SOURCES = ("physionet2019", "long")
STATEFUL_MOVES = {
    "entry": ("sticky", "where an hour of a case begins depends on its hour before, which stages do not know"),
    "advance": ("same-step", "an answer selects the next stage within the same hour, which no fixed route describes"),
}
STATELESS_MOVES = {"entry": "reset", "advance": "next-step"}
TRAIN_HINT = "unfold train fits the cascade and writes its run here"


@dataclass(frozen=True, slots=True)
class CascadeExits:
    """The exits of a cascade, as its run stores them."""

    directory: RunDir
    data: Mapping[str, Any]

    @property
    def sha256(self) -> str:
        """The hash of the exits in the run's manifest."""
        return str(self.directory.files()[EXITS_FILE]["sha256"])


@dataclass(frozen=True, slots=True, kw_only=True)
class CascadeStage:
    """A model of a cascade as a stage.

    Attributes:
        name: Of the model.
        after: Upstream stages, and the fraction of their cases that continues here.
        share: Fraction of all cases that enter here.
        latency_s: Time of one case, as the cascade measured it.
        file: Absolute path of the model; ``None`` if its file may not be loaded.
        features: Numbers per case.
        columns: Indices of the numbers that the model reads; ``None`` for all.
        rows_file: Absolute path of cases to profile with, if the run has them.
    """

    name: str
    after: Mapping[str, float]
    share: float
    latency_s: float
    file: str | None
    features: int
    columns: tuple[int, ...] | None
    rows_file: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CascadeSummary:
    """What a report says about the cascade behind a pipeline.

    Attributes:
        run: The run folder in the spec.
        unit: What a case is called.
        cases: Number of cases behind the routes.
        idle_share: Fraction of the cases that no model evaluates.
        estimated_stages: Stages with the latency that the cascade measured.
        stage_count: Number of all stages.
        rows_per_call: Batch size behind those latencies.
        unused_models: Models that no case reaches.
        exits_sha256: Hash of the exits.
    """

    run: str
    unit: str
    cases: int
    idle_share: float
    estimated_stages: tuple[str, ...]
    stage_count: int
    rows_per_call: int
    unused_models: tuple[str, ...]
    exits_sha256: str


def read_exits(folder: str, run: Run) -> CascadeExits:
    """Return the exits in the run of a cascade.

    Args:
        folder: The run of the cascade, as the spec names it.
        run: The run of the pipeline.

    Raises:
        UnfoldError: The run is missing, was changed, or holds no cascade that can be a pipeline.
    """
    path = run.path(folder, key=KEY)
    directory = RunDir(path)
    if path.resolve() == run.directory.path.resolve():
        raise user_error(
            "the pipeline would write to the run of the cascade", key=KEY, hint="another name, or --run DIR"
        )
    plan = _read_plan(directory)
    reason, hint = _find_obstacle(plan, has_exits=directory.has(EXITS_FILE))
    if reason:
        raise user_error(f"the cascade of {folder} cannot be the stages of a pipeline: {reason}", key=KEY, hint=hint)
    data = _read_exits(directory)
    if data["spec_sha256"] != plan.get("spec_sha256"):
        message = "the plan of this run belongs to another cascade than its exits"
        raise user_error(message, file=str(path), key=KEY, hint=TRAIN_HINT)
    return CascadeExits(directory, data)


def build_cascade_stages(exits: CascadeExits) -> list[CascadeStage]:
    """Return the models of a cascade as stages; the bytes of each model are those of the manifest."""
    return [_build_stage(model, exits) for model in exits.data["models"]]


def write_routes(exits: CascadeExits, run: Run) -> str:
    """Write the routes of the cases as a table of visits to the run, and return its absolute path.

    The table has a row for each case, in an order drawn once from the seed.
    """
    run.directory.write(ROUTES_FILE, _format_routes(exits.data, run.seed))
    return str((run.directory.path / ROUTES_FILE).absolute())


def summarize_cascade(
    folder: str, exits: CascadeExits, estimated_stages: tuple[str, ...], stage_count: int
) -> CascadeSummary:
    """Return the facts about a cascade that a report states."""
    data = exits.data
    idle = sum(path["cases"] for path in data["ways"] if not path["models"])
    return CascadeSummary(
        run=folder,
        unit=data.get("unit", "cases"),
        cases=data["cases"],
        idle_share=idle / data["cases"],
        estimated_stages=estimated_stages,
        stage_count=stage_count,
        rows_per_call=data["rows_per_call"],
        unused_models=tuple(data["unasked"]),
        exits_sha256=exits.sha256,
    )


def _read_plan(directory: RunDir) -> Mapping[str, Any]:
    if not directory.has(PLAN_FILE):
        raise user_error("no plan of a cascade in this folder", file=str(directory.path), key=KEY, hint=TRAIN_HINT)
    file = str(directory.path / PLAN_FILE)
    data = parse(decode_text(directory.read(PLAN_FILE), file), file).data
    kind = data.get("kind") if isinstance(data, Mapping) else None
    if kind != "cascade":
        raise user_error(f"a run of kind {kind}, not of a cascade", file=str(directory.path), key=KEY, hint=TRAIN_HINT)
    return dict(data)


def _find_obstacle(plan: Mapping[str, Any], *, has_exits: bool) -> tuple[str, str]:
    """Return why a cascade cannot be a pipeline and what helps; two empty strings if it can."""
    spec = plan.get("spec", {})
    source, moves = str(spec.get("data", {}).get("source")), spec.get("moves", {})
    if source == "recorded":
        reason = "its predictions were recorded: there is no model to serve"
        return reason, "only cascades of trained models are supported"
    for key, (value, reason) in STATEFUL_MOVES.items():
        if source in TIME_SERIES_SOURCES and moves.get(key) == value:
            return f"it has moves.{key}: {value}, and {reason}", f"unfold train it with {key}: {STATELESS_MOVES[key]}"
    return ("", "") if has_exits else ("it was planned by an earlier version", TRAIN_HINT)


def _read_exits(directory: RunDir) -> Mapping[str, Any]:
    file = str(directory.path / EXITS_FILE)
    try:
        data = parse_object(directory.read(EXITS_FILE), file)
        schema = data["schema"]
        is_readable = schema == SCHEMA and data["models"] and data["ways"] and data["cases"] > 0
    except (ValueError, KeyError, TypeError) as error:
        raise user_error(f"not the exits of a cascade: {error}", file=file, key=KEY, hint=TRAIN_HINT) from error
    if not is_readable:
        message = f"exits of schema {schema!r}, which this version cannot read"
        raise user_error(message, file=file, key=KEY, hint=TRAIN_HINT)
    return dict(data)


def _build_stage(model: Mapping[str, Any], exits: CascadeExits) -> CascadeStage:
    features = int(exits.data["columns"])
    file, columns, rows = None, None, None
    if model["file"] is not None:
        exits.directory.read(model["file"])
        file = _absolute_path(exits, model["file"])
        columns = None if model["columns"] == list(range(features)) else tuple(model["columns"])
        rows = exits.data["probe"]
        if rows is not None:
            exits.directory.read(rows)
            rows = _absolute_path(exits, rows)
    return CascadeStage(
        name=model["name"],
        after=model["after"],
        share=model.get("share", 1.0),
        latency_s=float(model["latency_us"]) * 1e-6,
        file=file,
        features=features,
        columns=columns,
        rows_file=rows,
    )


def _absolute_path(exits: CascadeExits, name: str) -> str:
    return str(Path(exits.directory.path / name).absolute())


def _format_routes(data: Mapping[str, Any], seed: int) -> bytes:
    names = [model["name"] for model in data["models"]]
    table = np.zeros((len(data["ways"]), len(names)), dtype=np.int64)
    for row, path in enumerate(data["ways"]):
        table[row, path["models"]] = 1
    cases = np.repeat(table, [path["cases"] for path in data["ways"]], axis=0)
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(np.random.default_rng([seed, 8]).permutation(cases).tolist())
    return stream.getvalue().encode()
