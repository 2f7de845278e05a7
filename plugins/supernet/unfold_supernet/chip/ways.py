"""Ways to save weight traffic, side by side on one stream: keep the core, follow the queries, batch by net."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from unfold_supernet.arrays import Floats
from unfold_supernet.chip import stream, study, table
from unfold_supernet.chip.layers import Family, sizes
from unfold_supernet.chip.machine import Machine
from unfold_supernet.chip.model import work
from unfold_supernet.chip.stream import CACHES, Outcome
from unfold_supernet.chip.study import Setting
from unfold_supernet.scale import size


@dataclass(frozen=True, slots=True)
class Way:
    """One way: its outcome a query when layers prefetch within themselves, and with prefetch through the layers.

    ``keep`` is the word of the spec for it, if there is one.
    """

    name: str
    layered: Outcome
    deep: Outcome
    keep: str = ""


def ways(what: Setting, levels: Floats, policy: str, every: int, batch: int) -> Iterator[Way]:
    """Yield every way on the same targets, which are those of the machine that keeps nothing."""
    yield _way("nothing kept", what, levels, policy, column=0)
    yield replace(_way("core kept", what, levels, policy), keep="fixed")
    ordered = study.only(what, what.kept.order)
    for name in CACHES:
        if name != "fixed":
            yield replace(_way(f"{name}, every {every}", ordered, levels, policy, cache=name, every=every), keep=name)
    yield _way("avgnet, of all cuts", what, levels, policy, cache="avgnet", every=every)
    yield _way("least-latency, refilled in passing", ordered, levels, policy, cache="least-latency", passing=True)
    together = batched(what, batch)
    yield _way(f"nothing kept, batches of {batch}", together, levels, policy, column=0, batch=batch)
    yield _way(f"core kept, batches of {batch}", together, levels, policy, batch=batch)
    roomy = study.setting(_family(what), replace(what.machine, persistent=core_bytes(what)), (what.kept.order,))
    yield _way(f"the whole core kept ({size(core_bytes(what))})", roomy, levels, policy)


def core_bytes(what: Setting) -> int:
    """Return the bytes of what every net uses."""
    return int(sizes(_family(what).core).sum())


def batched(what: Setting, batch: int) -> Setting:
    """Return the setting in which ``batch`` queries of one net are sent together, their weights loaded once."""
    works = tuple(work(item.net, what.machine, batch) for item in what.works)
    layered, deep = (table.known(works, what.columns, what.machine, deep=way) for way in (False, True))
    return replace(what, works=works, layered=layered, deep=deep)


def _way(
    name: str, what: Setting, levels: Floats, policy: str, *, column: int | None = None, batch: int = 1, **more: object
) -> Way:
    at = what.fixed if column is None else column
    layered, deep = (
        _each(_played(what.machine, levels, known, policy, at, more), batch) for known in (what.layered, what.deep)
    )
    return Way(name, layered, deep)


def _played(
    machine: Machine, levels: Floats, known: table.Known, policy: str, column: int, more: dict[str, object]
) -> Outcome:
    wanted = stream.targets(levels, known, policy)
    played: Outcome = stream.play(wanted, known, machine.bandwidth, policy=policy, column=column, **more)  # type: ignore[arg-type]
    return played


def _each(outcome: Outcome, batch: int) -> Outcome:
    return replace(outcome, seconds=outcome.seconds / batch, bytes=outcome.bytes / batch)


def _family(what: Setting) -> Family:
    nets = tuple(item.net for item in what.works)
    names = tuple(str(index) for index in np.arange(nets[0].table.shape[0]))
    return Family("", names, nets)
