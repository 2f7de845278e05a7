"""The hours of a spec with all that its models say of them: what policies are searched, certified and judged on."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from unfold_cascade._types import BoolArray, Float32, FloatArray, IntArray
from unfold_cascade.data.table import Rows, split_rows
from unfold_cascade.schema.cascade import CascadeSpec
from unfold_cascade.schema.parts import FeatureGroup
from unfold_cascade.temporal.data import warning_metrics
from unfold_cascade.temporal.data.features import expanded, has_pattern, layout, panel, purchase
from unfold_cascade.temporal.data.holdout import keep
from unfold_cascade.temporal.data.online_features import sight
from unfold_cascade.temporal.data.readers import files, read
from unfold_cascade.temporal.data.table import Long, entity_of_row, hours_since, rows_of, starts_of
from unfold_cascade.temporal.data.targets import truth
from unfold_cascade.temporal.models.training import BASELINE, Facts, Log, Slot, kept, logs, slots
from unfold_cascade.temporal.simulation.cost import Rates
from unfold_cascade.temporal.simulation.trajectories import Clock, Zoo
from unfoldkit.api import Run, dump, fail, fingerprint

FILE = "hours.npz"


@dataclass(frozen=True, slots=True)
class Part:
    """The entities of one part of the split.

    ``on`` (n, S) are the stages entered, ``since`` (n, S) the hours since then, ``highest`` (n,) the highest of them;
    ``bases`` holds the (n, S+1) probabilities of the monoliths by number. In ``zoo`` the models stand stage by stage,
    then the monoliths with their probability of the last stage, the one to compare with last.
    """

    clock: Clock
    zoo: Zoo
    on: BoolArray
    since: FloatArray
    highest: IntArray
    bases: Mapping[int, Float32]
    utility: warning_metrics.Utility
    events: warning_metrics.Events

    @property
    def label(self) -> BoolArray:
        """(n,) whether the last stage was entered."""
        last: BoolArray = self.on[:, -1]
        return last

    @property
    def entity(self) -> IntArray:
        """(n,) the entity of each hour."""
        return entity_of_row(self.clock.starts)


@dataclass(frozen=True, slots=True)
class Held:
    """What a run keeps of a model: its file, the columns that it reads, and the estimator that it is."""

    file: str
    columns: IntArray
    estimator: str


@dataclass(frozen=True, slots=True)
class Study:
    """All parts, the models' names, files and rates, and the numbers of the models of each stage."""

    spec: CascadeSpec
    train: Part
    calibrate: Part
    test: Part
    models: tuple[str, ...]
    stages: tuple[tuple[int, ...], ...]
    rates: Rates
    digest: str
    held: tuple[Held, ...]
    features: Mapping[str, FeatureGroup]

    @property
    def monolith(self) -> int:
        """The number of the monolith among the models."""
        return len(self.models) - 1

    @property
    def rivals(self) -> range:
        """The numbers of the other monoliths."""
        return range(sum(map(len, self.stages)), self.monolith)


@dataclass(frozen=True, slots=True)
class Hours:
    """What is known of the hours without their features; ``columns`` are those that the table has to make them of."""

    clock: Clock
    facts: Facts
    columns: tuple[str, ...]

    def features(self, spec: CascadeSpec) -> Mapping[str, FeatureGroup]:
        """Return the feature groups of a spec, patterns replaced by what they match beside the labels."""
        labels = {stage.target.column for stage in spec.stages}
        usable = [column for column in self.columns if column not in labels]
        return expanded(spec.features, usable) if has_pattern(spec.features) else spec.features


@dataclass(frozen=True, slots=True)
class Stored:
    """What a run holds: its hours, their split, and the place and log of each model, the monolith last."""

    hours: Hours
    rows: Rows
    places: tuple[Slot, ...]
    logs: tuple[Log, ...]
    features: Mapping[str, FeatureGroup]


def study(spec: CascadeSpec, run: Run) -> Study:
    """Return the study of a spec, fitting what is not fitted yet.

    Raises:
        UnfoldError: a file, column or label is not as the spec says, or there are too few cases.
    """
    table = cache(lambda: table_of(spec, run))
    hours = _hours(spec, run, table)
    rows, features = _split(spec, run, hours), hours.features(spec)
    places = slots(spec, run, hours.facts, layout(features))
    fold = _folds(hours.clock, rows.train, spec.gates.folds, run.seed)
    found = logs(spec, run, places, lambda: panel(table(), features), fold)
    unseen = np.concatenate([rows.calibrate, rows.test])
    keep(run, hours.facts.digest, sight(features).columns, unseen, hours.clock.starts, table)
    return _assembled(spec, hours, rows, places, found)


def stored(spec: CascadeSpec, run: Run) -> Stored:
    """Return what the run holds of a spec, without its table; nothing is fitted.

    Raises:
        UnfoldError: a model of the spec is not in the run, or was fitted with another seed or other versions.
    """
    hours = _unpacked(run.directory.read(FILE))
    rows, features = _split(spec, run, hours), hours.features(spec)
    places = slots(spec, run, hours.facts, layout(features))
    return Stored(hours, rows, tuple(places), tuple(kept(run, places)), features)


def rates_of(spec: CascadeSpec, found: Sequence[Log]) -> Rates:
    """Return what one call of each model costs; the monolith, which has no price of its own, is the last."""
    price = [model.price or 0.0 for stage in spec.stages for model in stage.models]
    price += [0.0] * (len(found) - len(price))
    flops, size, latency = (np.array([getattr(log, name) for log in found]) for name in ("flops", "bytes", "latency"))
    return Rates(np.array(price), flops, size, latency)


def check_operations(spec: CascadeSpec, places: Sequence[Slot], found: Sequence[Log]) -> None:
    """Raise when models are compared by operations, and those of one are not known."""
    unknown = next((slot for slot, log in zip(places, found, strict=True) if np.isnan(log.flops)), None)
    if unknown is not None and "flops" in spec.cost.by:
        hint = "cost: {by: latency} measures instead"
        raise fail(f"the operations of {unknown.recipe.estimator} are not known", key=unknown.key, hint=hint)


def _assembled(spec: CascadeSpec, hours: Hours, rows: Rows, places: list[Slot], found: list[Log]) -> Study:
    check_operations(spec, places, found)
    bought = purchase(spec.features)
    p = np.array([log.p[:, -1] for log in found])
    needs = np.array([bought.mask(slot.groups) for slot in places], dtype=np.int64)
    zoo = Zoo(p, needs, bought)
    bases = {place: log.p for place, log in enumerate(found) if places[place].stage == BASELINE}
    parts = [_part(hours, zoo, bases, entities) for entities in (rows.train, rows.calibrate, rows.test)]
    names = [stage.name for stage in spec.stages]
    numbers = tuple(tuple(m for m, slot in enumerate(places) if slot.stage == name) for name in names)
    models = tuple(f"{slot.stage}/{slot.model}" for slot in places)
    held = tuple(Held(slot.model_file, slot.columns, slot.recipe.estimator) for slot in places)
    rates, features = rates_of(spec, found), hours.features(spec)
    return Study(spec, parts[0], parts[1], parts[2], models, numbers, rates, hours.facts.digest, held, features)


def _part(hours: Hours, zoo: Zoo, bases: Mapping[int, Float32], entities: IntArray) -> Part:
    clock, facts = hours.clock, hours.facts
    rows = rows_of(clock.starts, entities)
    starts = starts_of(np.diff(clock.starts)[entities])
    since = facts.since[rows, -1]
    return Part(
        Clock(starts, clock.hour[rows]),
        Zoo(np.ascontiguousarray(zoo.p[:, rows]), zoo.needs, zoo.purchase),
        facts.on[rows],
        facts.since[rows],
        facts.highest[rows],
        {place: p[rows] for place, p in bases.items()},
        warning_metrics.utility(since),
        warning_metrics.events(since, starts),
    )


def _split(spec: CascadeSpec, run: Run, hours: Hours) -> Rows:
    """Return the entities of each part; the share of those that reach each stage is the same in all parts."""
    highest = np.maximum.reduceat(hours.facts.highest, hours.clock.starts[:-1])
    counts = np.bincount(highest, minlength=len(spec.stages) + 1)
    if counts[-1] < 8 or len(highest) < 24:
        name = spec.stages[-1].name
        raise fail(f"{counts[-1]} of {len(highest)} cases reach {name}; at least 8 of 24 are needed", key="data")
    return split_rows(highest, spec.data.split, run.seed)


def _folds(clock: Clock, entities: IntArray, folds: int, seed: int) -> IntArray:
    """Return (n,) the fold of each row, whole entities together, -1 for rows outside ``entities``."""
    order = np.random.default_rng([seed, 0xF01D]).permutation(entities)
    fold = np.full(len(clock.starts) - 1, -1, dtype=np.int64)
    fold[order] = np.arange(len(order)) % folds
    result: IntArray = fold[entity_of_row(clock.starts)]
    return result


def table_of(spec: CascadeSpec, run: Run) -> Long:
    """Return the table that a spec names."""
    from unfold_cascade.schema.temporal import LongData, PhysioNetData

    if not isinstance(spec.data, (PhysioNetData, LongData)):
        raise TypeError(f"{spec.data.source} has no hours")
    return read(spec.data, run)


def _hours(spec: CascadeSpec, run: Run, table: Callable[[], Long]) -> Hours:
    return _unpacked(run.directory.once(FILE, _made_from(spec, run), lambda: _packed(table(), spec)))


def current(spec: CascadeSpec, run: Run) -> bool:
    """Whether the hours that the run holds are those that the spec names, as they are now."""
    return run.directory.has(FILE, made_from=_made_from(spec, run))


def _made_from(spec: CascadeSpec, run: Run) -> str:
    # named only where they are read: hours of runs from before stay good
    also = ["columns"] if has_pattern(spec.features) else []
    return fingerprint(dump(spec.data), [dump(stage.target) for stage in spec.stages], _source(spec, run), *also)


def _source(spec: CascadeSpec, run: Run) -> str:
    """Return what tells one version of the files from another, without parsing them."""
    path = run.path(getattr(spec.data, "path", ""), key="data.path")
    digest = hashlib.sha256()
    for file in files(path) if path.is_dir() else [path]:
        digest.update(file.name.encode() + b"\0" + _bytes(file))
    return digest.hexdigest()


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise fail(f"cannot read: {error.strerror}", file=str(file), key="data.path") from error


def _packed(table: Long, spec: CascadeSpec) -> bytes:
    on, highest = truth(table, spec.stages)
    stream = io.BytesIO()
    text = np.frombuffer(json.dumps({"digest": table.digest, "columns": table.columns}).encode(), dtype=np.uint8)
    since = np.column_stack([hours_since(on[:, s], table.hour, table.starts) for s in range(on.shape[1])])
    arrays = {"starts": table.starts, "hour": table.hour, "on": on, "highest": highest, "since": since}
    np.savez(stream, allow_pickle=False, facts=text, **arrays)
    return stream.getvalue()


def _unpacked(data: bytes) -> Hours:
    with np.load(io.BytesIO(data), allow_pickle=False) as stored:
        clock = Clock(stored["starts"], stored["hour"])
        known = json.loads(stored["facts"].tobytes())
        facts = Facts(clock.starts, stored["on"], stored["since"], stored["highest"], known["digest"])
        return Hours(clock, facts, tuple(known.get("columns", ())))
