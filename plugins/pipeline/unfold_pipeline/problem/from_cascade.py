"""A cascade's run as the stages of a pipeline: its models, the shares passed on, and the ways that its cases took.

The kinds meet in files only: ``exits.json`` says what is asked after what, ``plan.yaml`` of which cascade it is. Each
is held against its hash in the run's manifest, and so is every model.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unfold_pipeline.problem import latency_profile
from unfold_pipeline.runtime import model_loader
from unfold_pipeline.schema.models import FromRun, ModelSpec, PipelineSpec, StageSpec, machine
from unfoldkit.api import Run, RunDir, fail
from unfoldkit.safe_io.files import parse_object
from unfoldkit.spec.yaml_reader import decoded, parse

EXITS_FILE = "exits.json"
PLAN_FILE = "plan.yaml"
SCHEMA = "unfold_cascade.exits/1"
ROUTES_FILE = "routes.csv"
KEY = "stages.from"
LARGEST = 32
TIMED = ("physionet2019", "long")
MEMORY = {
    "entry": ("sticky", "where an hour of a case begins depends on its hour before, which no stage knows"),
    "advance": ("same-step", "an answer decides in the same hour which stage is asked next, which no route tells"),
}
ROUTABLE = {"entry": "reset", "advance": "next-step"}
TRAIN = "unfold train fits the cascade, and leaves its run here"


@dataclass(frozen=True, slots=True)
class Found:
    """What a cascade's run says of its exits."""

    directory: RunDir
    exits: Mapping[str, Any]


def resolved(spec: PipelineSpec, run: Run, *, fresh: bool = True) -> PipelineSpec:
    """Return the spec with its stages written out; as it is where they stand in it.

    ``fresh`` refuses profiles of other models than those of the cascade's run.

    Raises:
        UnfoldError: the run is not there, is none of a cascade that can be planned, or was changed; or the cascade was
            trained since its models were measured.
    """
    if not isinstance(spec.stages, FromRun):
        return spec
    found = read(spec.stages, run)
    stages = {item["name"]: _timed(_stage(item, spec, found), item["name"], run) for item in found.exits["models"]}
    run.directory.write(ROUTES_FILE, _routes(found.exits, run.seed))
    visits = str((run.directory.path / ROUTES_FILE).absolute())
    result = spec.model_copy(update={"stages": stages, "visits": visits})
    if fresh:
        _check_fresh(result, run)
    return result


def read(given: FromRun, run: Run) -> Found:
    """Return what a run holds of a cascade's exits.

    Raises:
        UnfoldError: see :func:`resolved`.
    """
    path = run.path(given.run, key=KEY)
    directory = RunDir(path)
    if path.resolve() == run.directory.path.resolve():
        raise fail("the pipeline would write to the run of the cascade", key=KEY, hint="another name, or --run DIR")
    plan = _plan(directory)
    why, hint = _unfit(plan, told=directory.has(EXITS_FILE))
    if why:
        raise fail(f"the cascade of {given.run} cannot be the stages of a pipeline: {why}", key=KEY, hint=hint)
    exits = _exits(directory)
    if exits["spec_sha256"] != plan.get("spec_sha256"):
        raise fail("the plan of this run is of another cascade than its exits", file=str(path), key=KEY, hint=TRAIN)
    return Found(directory, exits)


def told(given: PipelineSpec, spec: PipelineSpec, run: Run) -> tuple[tuple[str, str], ...]:
    """Return the lines of a report on where stages and latencies come from; none where the spec says it all."""
    if not isinstance(given.stages, FromRun):
        return ()
    exits = read(given.stages, run).exits
    unit = exits.get("unit", "cases")
    lines = [
        ("routes", f"the ways of {exits['cases']:,} {unit} that the gates were not tuned on, of {given.stages.run}")
    ]
    idle = sum(way["cases"] for way in exits["ways"] if not way["models"])
    if idle:
        lines.append(("idle", f"{idle / exits['cases']:.0%} of the {unit} ask no model, and are answered at once"))
    paid = [name for name in spec.named if latency_profile.stored(name, run) is None]
    if paid:
        what = "all stages" if len(paid) == len(spec.named) else ", ".join(paid)
        rows = f"{exits['rows_per_call']:,} rows a call"
        lines.append(("latency", f"{what}: as the cascade timed it with {rows}; unfold profile measures small batches"))
    if exits["unasked"]:
        lines.append(("left out", f"{', '.join(exits['unasked'])}: no {unit.removesuffix('s')} came there"))
    return tuple(lines)


def inputs(given: PipelineSpec, run: Run) -> dict[str, str]:
    """Return the hash of the exits that a plan was made from, if they stand in a run."""
    if not isinstance(given.stages, FromRun):
        return {}
    return {"exits_sha256": read(given.stages, run).directory.files()[EXITS_FILE]["sha256"]}


def _check_fresh(spec: PipelineSpec, run: Run) -> None:
    for name, stage in spec.named.items():
        if stage.model is None or latency_profile.stored(name, run) is None:
            continue
        source, pinned = model_loader.source_of(name, stage.model, run), spec.placement.pinned
        made_from = model_loader.identity(source, stage.model, pinned)
        if latency_profile.stored(name, run, made_from=made_from) is None:
            message = "what was measured is of another model: the cascade was trained since"
            raise fail(message, key=f"stages.{name}", hint="unfold profile SPEC measures it again")


def _plan(directory: RunDir) -> Mapping[str, Any]:
    if not directory.has(PLAN_FILE):
        raise fail("no plan of a cascade in this folder", file=str(directory.path), key=KEY, hint=TRAIN)
    file = str(directory.path / PLAN_FILE)
    data = parse(decoded(directory.read(PLAN_FILE), file), file).data
    kind = data.get("kind") if isinstance(data, Mapping) else None
    if kind != "cascade":
        raise fail(f"a run of kind {kind}, not of a cascade", file=str(directory.path), key=KEY, hint=TRAIN)
    return dict(data)


def _unfit(plan: Mapping[str, Any], *, told: bool) -> tuple[str, str]:
    """Return why a cascade cannot be planned, and what helps; nothing where it can. ``told``: its exits are there."""
    spec = plan.get("spec", {})
    source, moves = str(spec.get("data", {}).get("source")), spec.get("moves", {})
    if source == "recorded":
        why = "its predictions were recorded: there is no model to serve"
        return why, "supported are cascades of models that were trained"
    for key, (value, why) in MEMORY.items():
        if source in TIMED and moves.get(key) == value:
            return f"it has moves.{key}: {value}, and {why}", f"unfold train it with {key}: {ROUTABLE[key]}"
    return ("", "") if told else ("it was planned by an earlier version", TRAIN)


def _exits(directory: RunDir) -> Mapping[str, Any]:
    file = str(directory.path / EXITS_FILE)
    try:
        data = parse_object(directory.read(EXITS_FILE), file)
        schema = data["schema"]
        known = schema == SCHEMA and data["models"] and data["ways"] and data["cases"] > 0
    except (ValueError, KeyError, TypeError) as error:
        raise fail(f"not the exits of a cascade: {error}", file=file, key=KEY, hint=TRAIN) from error
    if not known:
        raise fail(f"exits of schema {schema!r}, which this version cannot read", file=file, key=KEY, hint=TRAIN)
    return dict(data)


def _stage(item: Mapping[str, Any], spec: PipelineSpec, found: Found) -> StageSpec:
    most = spec.stages.max_batch if isinstance(spec.stages, FromRun) else LARGEST
    each = float(item["latency_us"]) * 1e-6
    body = {
        "after": item["after"],
        "share": item.get("share", 1.0),
        "latency": {machine(spec): {size: f"{each * size:.12g} s" for size in (1, most)}},
        "max_batch": most,
    }
    return StageSpec.model_validate_json(json.dumps(body)).model_copy(update={"model": _model(item, found)})


def _timed(stage: StageSpec, name: str, run: Run) -> StageSpec:
    """Leave out the time that the cascade took where it was measured since, as a time that is given goes before."""
    known = stage.model is not None and latency_profile.stored(name, run) is not None
    return stage.model_copy(update={"latency": {}}) if known else stage


def _model(item: Mapping[str, Any], found: Found) -> ModelSpec | None:
    """Return where the model stands, its bytes being those of the manifest; ``None`` if it may not be loaded."""
    if item["file"] is None:
        return None
    found.directory.read(item["file"])
    width = int(found.exits["columns"])
    every = item["columns"] == list(range(width))
    rows = found.exits["probe"]
    if rows is not None:
        found.directory.read(rows)
    return ModelSpec(
        file=_absolute(found, item["file"]),
        features=width,
        columns=None if every else tuple(item["columns"]),
        rows=None if rows is None else _absolute(found, rows),
    )


def _absolute(found: Found, name: str) -> str:
    return str(Path(found.directory.path / name).absolute())


def _routes(exits: Mapping[str, Any], seed: int) -> bytes:
    """Return a table of visits with a row for each case, in an order drawn once."""
    names = [item["name"] for item in exits["models"]]
    table = np.zeros((len(exits["ways"]), len(names)), dtype=np.int64)
    for row, way in enumerate(exits["ways"]):
        table[row, way["models"]] = 1
    cases = np.repeat(table, [way["cases"] for way in exits["ways"]], axis=0)
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(np.random.default_rng([seed, 8]).permutation(cases).tolist())
    return stream.getvalue().encode()
