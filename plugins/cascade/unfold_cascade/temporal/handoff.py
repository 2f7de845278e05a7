"""What the models of a plan over time do to unseen hours, as a file for other kinds: the like of ``exits`` beside it.

A query is an hour of a case. Which stages are asked in it was settled in the hours before, so hours enter at each
stage's first model; the others of its chain are asked of the hours that the one before was not sure of.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unfold_cascade._types import IntArray
from unfold_cascade.models.zoo import WHOLE
from unfold_cascade.report.handoff import EXITS_FILE, SCHEMA, is_loadable, make_unique_names
from unfold_cascade.schema.temporal import Moves
from unfold_cascade.temporal.data.holdout import FILE as PROBE_FILE
from unfold_cascade.temporal.data.holdout import read
from unfold_cascade.temporal.data.online_features import features_of, sight
from unfold_cascade.temporal.models.study import Part
from unfold_cascade.temporal.search.compose import parallel
from unfold_cascade.temporal.search.planner import Findings
from unfold_cascade.temporal.simulation.policy import Policy, ladder
from unfold_cascade.temporal.simulation.trajectories import walk
from unfoldkit.api import Run, dump, fingerprint

ROWS_FILE = "serving/rows.npz"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a model is asked: its number in the study, its stage, its position in the chain, and the share of hours."""

    name: str
    model: int
    stage: int
    position: int
    share: float


def keep(found: Findings, run: Run) -> None:
    """Write ``exits.json`` and rows for its models to the run, where routes can tell the whole; a check changes no run.

    See :func:`routable` for where they cannot.
    """
    spec = found.study.spec
    if run.options.get("baseline_plan") or not routable(spec.moves or Moves()):
        return
    made_from = fingerprint(dump(spec)["features"], run.directory.files()[PROBE_FILE])
    run.directory.once(ROWS_FILE, made_from, lambda: _rows(found, run.directory.read(PROBE_FILE)))
    body = json.dumps(exits(found), indent=1) + "\n"
    run.directory.write(EXITS_FILE, body.encode(), made_from=fingerprint(dump(spec)))


def routable(moves: Moves) -> bool:
    """Whether every hour begins at first models, and no answer decides in the same hour which stage is asked next."""
    return moves.entry == "reset" and moves.advance == "next-step"


def exits(found: Findings) -> dict[str, Any]:
    """Return the models of a plan stage by stage, the share of hours that come to each, and the ways of the hours."""
    study = found.study
    asked = np.concatenate([_asked(found, part) for part in (study.calibrate, study.test)])
    every = _places(found, asked)
    seen = [place for place in every if place.share > 0]
    return {
        "schema": SCHEMA,
        "spec_sha256": fingerprint(dump(study.spec)),
        "unit": "hours",
        "cases": len(asked),
        "columns": sight(study.features).width,
        "rows_per_call": study.spec.cost.batch,
        "probe": ROWS_FILE,
        "models": [_told(found, place, seen) for place in seen],
        "ways": _ways(asked, seen),
        "unasked": [place.name for place in every if place.share == 0],
    }


def served(found: Findings) -> Policy:
    """Return the policy that a server follows: the monolith's alone where no cascade was promised."""
    return found.choice.point.policy if found.choice.promised else found.rule.policy


def _asked(found: Findings, part: Part) -> IntArray:
    """Return (n, S) how many models of each stage are asked in each hour of a part."""
    flags = parallel(found.study) if found.choice.promised else np.array([True])
    went = walk(part.clock, part.zoo, ladder(served(found), flags), found.study.spec.moves or Moves())
    return went.asked.astype(np.int64)


def _places(found: Findings, asked: IntArray) -> list[Place]:
    spots = [(m, s, k) for s, step in enumerate(served(found)) for k, m in enumerate(step.chain)]
    names = make_unique_names([found.study.models[m].split("/", 1) for m, _, _ in spots])
    shares = [float((asked[:, s] > k).mean()) for _, s, k in spots]
    return [Place(name, *spot, share) for name, spot, share in zip(names, spots, shares, strict=True)]


def _ways(asked: IntArray, seen: Sequence[Place]) -> list[dict[str, Any]]:
    rows, counts = np.unique(asked, axis=0, return_counts=True)
    return [
        {"models": [i for i, place in enumerate(seen) if row[place.stage] > place.position], "cases": int(count)}
        for row, count in zip(rows, counts, strict=True)
    ]


def _told(found: Findings, place: Place, seen: Sequence[Place]) -> dict[str, Any]:
    held, (stage, model) = found.study.held[place.model], found.study.models[place.model].split("/", 1)
    before = [one for one in seen if (one.stage, one.position) == (place.stage, place.position - 1)]
    return {
        "name": place.name,
        "stage": stage,
        "group": WHOLE,
        "model": model,
        "file": held.file if is_loadable(held.estimator) else None,
        "columns": held.columns.tolist(),
        "latency_us": float(found.study.rates.latency[place.model]),
        "cases": round(place.share * (len(found.study.calibrate.highest) + len(found.study.test.highest))),
        "share": 1.0 if before else place.share,
        "after": {one.name: place.share / one.share for one in before},
    }


def _rows(found: Findings, probe: bytes) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, x=features_of(sight(found.study.features), read(probe)))
    return stream.getvalue()
