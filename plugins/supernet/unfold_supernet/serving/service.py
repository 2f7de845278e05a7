"""The service of a trained family: deadlines in, and at each dispatch the net and the batch that the rule picks."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from unfold_supernet.family.checkpoint import NORMS, WEIGHTS, read_family
from unfold_supernet.family.names import SPACE
from unfold_supernet.networks.space import Space, space_of
from unfold_supernet.networks.supernet import Pair
from unfold_supernet.replay.baselines import ruled
from unfold_supernet.replay.report import front, guarded
from unfold_supernet.scheduling import escalation
from unfold_supernet.scheduling.accuracy_levels import ways
from unfold_supernet.scheduling.policies import Served
from unfold_supernet.schema.models import ServingSpec, SpaceSpec, SupernetSpec
from unfold_supernet.serving.metrics import counted, of_counters
from unfold_supernet.serving.model import Live
from unfold_supernet.training import latency
from unfoldkit.api import Run, Service, fail, fingerprint
from unfoldkit.serving.batching.batcher import Limits
from unfoldkit.serving.batching.request_queue import Deadlines
from unfoldkit.serving.model import Batch, Call, Field, Turn
from unfoldkit.serving.observability.dashboard import of_requests
from unfoldkit.serving.oip.app import application, served

ROUNDS = 10
SMALLEST = 0


def service(spec: SupernetSpec, run: Run) -> Service:
    """Return the service of the family in a run; nothing is trained, latencies are measured anew.

    Raises:
        UnfoldError: the run holds no family, one of another space, or no net that keeps the guard.
    """
    from prometheus_client import CollectorRegistry

    if spec.space is None:
        raise fail("this family is known by its layers only", key="family", hint="write space and data, and train")
    torch.set_num_threads(1)
    registry = CollectorRegistry()
    model, serving = live(spec, run, registry)
    found = ways(model.nets, partial(ruled, serving.policy, serving.slo), model.pace)

    def line() -> Deadlines:
        return Deadlines(found, serving.slo, run.clock)

    # never in the event loop: requests must be heard and stamped while a net works
    limits = Limits(batch_rows=max(net.most for net in model.nets), loop_seconds=0.0)
    app = application([model], limits=limits, line=line, registry=registry, log=run.log, clock=run.clock)
    watch = of_requests(spec.name, "supernet", app.metrics, of_counters(registry, model.nets, serving.attainment))
    told = tuple(_told(serving, model))
    return served(spec.name, app, lines=told, watch=watch)


def live(spec: SupernetSpec, run: Run, registry: Any) -> tuple[Live, ServingSpec]:
    """Return the model that answers, measured on this machine, and how it serves.

    Raises:
        UnfoldError: as ``service``.
    """
    serving, known = front(spec, run)
    assert spec.space is not None  # noqa: S101 - service() looked
    if not run.directory.has(SPACE):
        raise fail("this run holds no family", file=str(run.directory.path), hint="unfold train SPEC")
    nets, family = guarded(serving, known, run), read_family(run.directory)
    _same(spec.space, family.space)
    model = Live(
        name=spec.name,
        version=fingerprint(*(run.directory.read(name).hex() for name in (WEIGHTS, NORMS)))[:12],
        inputs=_inputs(family.space),
        facts={},
        classes=tuple(known["classes"]),
        nets=nets,
        bound=tuple(family.ready(escalation.first(net), net.then, serving.escalate) for net in nets),
        count=counted(registry, nets),
        clock=run.clock,
    )
    measured = tuple(timed(model, at) for at in range(len(nets)))
    return replace(model, nets=measured, facts=_facts(serving, measured, known["classes"])), serving


def timed(model: Live, at: int) -> Served:
    """Return a net with the median seconds of a batch on this machine; the pace makes up for the load.

    Of a pair the two are measured, as what is sent to try does not say how many would be unsure.
    """
    net, bound = model.nets[at], model.bound[at]
    if isinstance(bound, Pair):
        apart = replace(model, nets=(net, net), bound=(bound.first, bound.then))
        return escalation.timed(net, _timed(apart, 0), _timed(apart, 1))
    return _timed(model, at)


def _timed(model: Live, at: int) -> Served:
    seconds, longest = [], 0.0
    for size in latency.BATCHES:
        call = partial(model.predict, _trial(model, size, at))
        latency.timed(call, 2, latency.ENOUGH / 10, least=1)
        found = latency.timed(call, ROUNDS, latency.ENOUGH)
        # a larger batch that was measured quicker is noise
        longest = max(longest, float(np.median(found)))
        seconds.append((size, longest))
    return replace(model.nets[at], seconds=tuple(seconds))


def _trial(model: Live, rows: int, way: int) -> Batch:
    inputs = {item.name: np.zeros((rows, *item.shape)) for item in model.inputs}
    return Batch(inputs, (Call(rows),), trial=True, turn=Turn(way, (0.0,), 0.0))


def _same(given: SpaceSpec, found: Space) -> None:
    wanted = space_of(given, found.channels, found.size, found.extra, found.classes)
    if replace(wanted, subnets=()) != replace(found, subnets=()) or not set(found.subnets) <= set(wanted.subnets):
        raise fail("the family of this run has another space", key="space", hint="unfold train SPEC")


def _inputs(space: Space) -> tuple[Field, ...]:
    x = Field("x", "FP64", (space.channels, *space.size))
    return (x, Field("extra", "FP64", (space.extra,))) if space.extra else (x,)


def _facts(serving: ServingSpec, nets: tuple[Served, ...], classes: list[str]) -> dict[str, Any]:
    return {
        "kind": "supernet",
        "policy": serving.policy,
        "slo_ms": serving.slo * 1e3,
        "guard": dict(serving.guard),
        "labels": classes,
        "nets": {net.name: _facts_of(net) for net in nets},
    }


def _facts_of(net: Served) -> dict[str, Any]:
    return {"expected_accuracy": net.accuracy / 100, "ms": {str(size): time * 1e3 for size, time in net.seconds}}


def _told(serving: ServingSpec, model: Live) -> list[tuple[str, str]]:
    nets = [f"{net.name} {net.accuracy:.1f} % in {net.takes(1) * 1e3:.2g} ms" for net in model.nets]
    return [
        ("nets", " · ".join(nets)),
        ("rule", f"{serving.policy}; who cannot be in time is answered by {model.nets[SMALLEST].name}"),
        ("accuracy", "parameters.least_accuracy of a request, a share; none less accurate answers it"),
        ("deadline", f"parameters.deadline_ms of a request, else {serving.slo * 1e3:g} ms"),
    ]
