"""Ways to save weight traffic, side by side on one stream: keep the core, follow the queries, batch by net."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from unfold_supernet.accelerator import latency_table, scheduler
from unfold_supernet.accelerator.cost_model import work
from unfold_supernet.accelerator.hardware import Machine
from unfold_supernet.accelerator.layers import Family, sizes
from unfold_supernet.accelerator.queries import Asked
from unfold_supernet.accelerator.scheduler import CACHES, Outcome
from unfold_supernet.arrays import Floats
from unfold_supernet.study import sweep
from unfold_supernet.study.sweep import Setting
from unfold_supernet.units import size

Targets = tuple[Floats, Floats]
Wanted = tuple[Targets, Targets]
"""What the policy goes by and the other target, by query, on the machine without and with deep prefetch."""


@dataclass(frozen=True, slots=True)
class Way:
    """One way: its outcome a query when layers prefetch within themselves, and with prefetch through the layers.

    ``keep`` is the word of the spec for it, if there is one.
    """

    name: str
    layered: Outcome
    deep: Outcome
    keep: str = ""


def ways(what: Setting, asked: Asked, policy: str, every: int, batch: int) -> Iterator[Way]:
    """Yield every way on the same targets, which are those of the machine that keeps nothing.

    A query of a batch is answered when the batch is, and its deadline is no later for that.
    """
    wanted = asked.targets(what.layered, policy), asked.targets(what.deep, policy)
    yield _way("nothing kept", what, wanted, policy, column=0)
    yield replace(_way("core kept", what, wanted, policy), keep="fixed")
    ordered = sweep.only(what, what.kept.order)
    for name in CACHES:
        if name != "fixed":
            yield replace(_way(f"{name}, every {every}", ordered, wanted, policy, cache=name, every=every), keep=name)
    yield _way("avgnet, of all cuts", what, wanted, policy, cache="avgnet", every=every)
    yield _way("least-latency, refilled in passing", ordered, wanted, policy, cache="least-latency", passing=True)
    together = batched(what, batch)
    yield _way(f"nothing kept, batches of {batch}", together, wanted, policy, column=0, batch=batch)
    yield _way(f"core kept, batches of {batch}", together, wanted, policy, batch=batch)
    roomy = sweep.setting(_family(what), replace(what.machine, persistent=core_bytes(what)), (what.kept.order,))
    yield _way(f"the whole core kept ({size(core_bytes(what))})", roomy, wanted, policy)


def core_bytes(what: Setting) -> int:
    """Return the bytes of what every net uses."""
    return int(sizes(_family(what).core).sum()) * what.machine.weight


def batched(what: Setting, batch: int) -> Setting:
    """Return the setting in which ``batch`` queries of one net are sent together, their weights loaded once."""
    works = tuple(work(item.net, what.machine, batch) for item in what.works)
    layered, deep = (latency_table.known(works, what.columns, what.machine, deep=way) for way in (False, True))
    return replace(what, works=works, layered=layered, deep=deep)


def _way(
    name: str, what: Setting, wanted: Wanted, policy: str, *, column: int | None = None, batch: int = 1, **more: object
) -> Way:
    at = what.fixed if column is None else column
    layered, deep = (
        _each(_played(what.machine, targets, known, policy, at, more), batch)
        for targets, known in zip(wanted, (what.layered, what.deep), strict=True)
    )
    return Way(name, layered, deep)


def _played(
    machine: Machine, targets: Targets, known: latency_table.Known, policy: str, column: int, more: dict[str, object]
) -> Outcome:
    own, others = targets
    played: Outcome = scheduler.play(
        own, known, machine.bandwidth, policy=policy, column=column, others=others, **more  # type: ignore[arg-type]
    )  # fmt: skip
    return played


def _each(outcome: Outcome, batch: int) -> Outcome:
    return replace(outcome, seconds=outcome.seconds / batch, bytes=outcome.bytes / batch)


def _family(what: Setting) -> Family:
    nets = tuple(item.net for item in what.works)
    names = tuple(str(index) for index in np.arange(nets[0].table.shape[0]))
    return Family("", names, nets)
