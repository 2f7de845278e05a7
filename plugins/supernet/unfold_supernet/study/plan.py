"""A family on a simulated accelerator: what is kept, what it saves, what else would pay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from unfold_supernet.accelerator.hardware import Energy, Machine, presets
from unfold_supernet.accelerator.layer_table import tabled
from unfold_supernet.accelerator.layers import Family, sizes
from unfold_supernet.accelerator.queries import Asked
from unfold_supernet.accelerator.query_table import asked_of, digests
from unfold_supernet.accelerator.reference_families import family
from unfold_supernet.family.names import FRONT, SPACE
from unfold_supernet.networks.space import chip_family, space_from
from unfold_supernet.schema.models import AcceleratorSpec, QueriesSpec, SupernetSpec
from unfold_supernet.study import report as screen
from unfold_supernet.study import sweep
from unfold_supernet.study.published import obtained
from unfold_supernet.study.strategies import ways
from unfold_supernet.study.study import Study
from unfold_supernet.study.sweep import Setting
from unfoldkit.api import Report, Run, fail
from unfoldkit.safe_io.files import parse_object

KIB = 1024


def accelerator_plan(spec: SupernetSpec, run: Run) -> Report:
    """Return what to keep in the persistent buffer for a stream, and what that saves.

    Raises:
        UnfoldError: no layer of the family fits the buffers.
    """
    machine = machine_of(spec.accelerator or AcceleratorSpec())
    whole = family_of(spec, run)
    asked = asked_of(spec.queries, run)
    chosen = sweep.suited(sweep.setting(whole, machine), asked, spec.queries.policy)
    late = _late(chosen, spec.queries)
    if len(late) == len(whole.nets):
        return screen.too_slow(spec, whole, chosen)
    if late:
        whole = replace(whole, nets=tuple(net for index, net in enumerate(whole.nets) if index not in late))
        chosen = sweep.suited(sweep.setting(whole, machine), asked, spec.queries.policy)
    run.progress("sweep", 0, 2)
    report = screen.report(spec, _studied(spec, run, asked, whole, chosen))
    run.progress("sweep", 2, 2)
    return replace(report, decision=decision(whole, chosen, spec.queries))


def family_of(spec: SupernetSpec, run: Run) -> Family:
    """Return the layers of the family: a built-in one, those of a table, or the one that was trained in this run.

    Raises:
        UnfoldError: it was not trained yet, or the table is none.
    """
    if spec.family is not None:
        return family(spec.family)
    if spec.layers is not None:
        return tabled(run.path(spec.layers, key="layers"), spec.name)
    if not run.directory.has(FRONT):
        raise fail("this family was not trained yet", file=str(run.directory.path), hint="unfold train SPEC")
    with run.directory.decoding(SPACE, "a search space") as data:
        space = space_from(parse_object(data))
    with run.directory.decoding(FRONT, "a front") as data:
        known = {item["name"]: float(item["accuracy"]) for item in parse_object(data)["nets"]}
        return chip_family(spec.name, space, [known[one.name] for one in space.subnets])


def machine_of(given: AcceleratorSpec) -> Machine:
    """Return the preset with what the spec says instead."""
    machine = presets()[given.preset]
    named = {
        "persistent": given.persistent_buffer, "dynamic": given.dynamic_buffer, "streaming": given.streaming_buffer,
        "clock": given.clock, "rows": given.rows, "columns": given.columns,
    }  # fmt: skip
    known: dict[str, Any] = {key: value for key, value in named.items() if value is not None}
    energy = Energy(given.energy.mac, given.energy.on_chip, given.energy.off_chip)
    told = given.precision
    known |= {name: bits // 8 for name, bits in (("weight", told.weights), ("value", told.maps)) if bits is not None}
    made = replace(machine, **known, bandwidth=given.bandwidth, overlapped=given.overlapped, energy=energy)
    # one tile is computed while the next one comes, so that the buffer has room for two
    return replace(made, tile=min(made.tile, made.dynamic // 2))


def decision(whole: Family, chosen: Setting, queries: QueriesSpec) -> Mapping[str, Any]:
    """Return what to keep as data: kernels and depth of each layer that is held."""
    kept = chosen.kept
    held = {
        name: {"kernels": int(row[0]), "depth": int(row[1])}
        for name, row in zip(whole.layers, kept.graph, strict=True)
        if row.prod()
    }
    return {
        "family": whole.name,
        "nets": [net.name for net in whole.nets],
        "policy": queries.policy,
        "keep": queries.keep,
        "cut_from": kept.source,
        "bytes": int(sizes(kept.graph).sum()) * chosen.machine.weight,
        "layers": held,
    }


def _late(chosen: Setting, queries: QueriesSpec) -> set[int]:
    if queries.deadline is None:
        return set()
    times = chosen.layered.seconds[:, chosen.fixed]
    return {index for index, time in enumerate(times) if time > queries.deadline}


def _swept(given: AcceleratorSpec, whole: Family, weight: int) -> tuple[int, ...]:
    """Return the buffers of the spec, or parts of the largest net where the least of the usual ones holds all of it."""
    largest = max(int(net.weights.sum()) for net in whole.nets) * weight
    if given.sizes != AcceleratorSpec().sizes or largest >= min(given.sizes):
        return given.sizes
    return tuple(max(1, largest * part // 8) for part in (1, 2, 4, 6, 8))


def _studied(spec: SupernetSpec, run: Run, asked: Asked, whole: Family, chosen: Setting) -> Study:
    given, queries, machine = spec.accelerator or AcceleratorSpec(), spec.queries, chosen.machine
    inputs = digests(run, {"queries.path": queries.path, "layers": spec.layers})
    buffers = sorted({*_swept(given, whole, machine.weight), machine.persistent})
    bandwidths = sorted({*given.bandwidths, machine.bandwidth}, reverse=True)
    points = tuple(sweep.sweep(whole, machine, buffers, bandwidths, asked, queries.policy))
    run.progress("sweep", 1, 2)
    if not any(point.traffic for point in points) and machine.persistent:
        raise fail("no kernel of the family fits the persistent buffer", key="accelerator.persistent_buffer")
    found = tuple(ways(chosen, asked, queries.policy, queries.every, queries.batch))
    return Study(whole, chosen, queries, points, found, tuple(obtained(points, machine.persistent)), inputs)
