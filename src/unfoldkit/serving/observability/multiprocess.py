"""Metrics of several processes as one: each keeps what it counts in a file, whoever is asked adds all of them up."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric

Snapshot = list[tuple[str, str, str, list[tuple[str, dict[str, str], float]]]]
"""Name, documentation, type, and samples of each metric of one process."""

# a moment is no amount: of several, the first counts
MOMENTS = ("_created", "_start_time_seconds")
LAST = frozenset({"counter", "histogram"})


@dataclass(frozen=True, slots=True)
class Siblings:
    """The processes of one service; ``folder`` holds a file for each, named by its number in the system."""

    folder: Path

    def keep(self, registry: CollectorRegistry) -> None:
        """Write down what this process counts; a full disk only makes the others know less."""
        file = self.folder / f"{os.getpid()}.json"
        with suppress(OSError):
            draft = file.with_suffix(".new")
            draft.write_text(json.dumps(snapshot(registry)), encoding="utf-8")
            draft.replace(file)

    def text(self, registry: CollectorRegistry) -> bytes:
        """Return the sums over all processes in the exposition format; of one that is gone, what only grows counts."""
        others = [_read(file) for file in self.folder.glob("*.json") if file.stem != str(os.getpid())]
        merged = CollectorRegistry()
        merged.register(Sums([snapshot(registry), *others]))
        return bytes(generate_latest(merged))


@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """The sums of snapshots, each sample by name and labels. A ``Collector`` by shape."""

    snapshots: list[Snapshot] = field(default_factory=list)

    def collect(self) -> Iterator[Metric]:
        """Yield each metric once."""
        found: dict[str, Metric] = {}
        for name, text, kind, samples in (metric for one in self.snapshots for metric in one):
            known = found.setdefault(name, Metric(name, text, kind))
            for sample, labels, value in samples:
                _add(known, sample, labels, value)
        yield from found.values()


def snapshot(registry: CollectorRegistry) -> Snapshot:
    """Return what a registry holds now, as plain data."""
    return [(m.name, m.documentation, m.type, [(s.name, s.labels, s.value) for s in m.samples]) for m in _all(registry)]


def _all(registry: CollectorRegistry) -> Iterable[Metric]:
    found: Iterable[Metric] = registry.collect()
    return found


def _add(known: Metric, name: str, labels: dict[str, str], value: float) -> None:
    for at, sample in enumerate(known.samples):
        if sample.name == name and sample.labels == labels:
            both = min(sample.value, value) if name.endswith(MOMENTS) else sample.value + value
            known.samples[at] = sample._replace(value=both)
            return
    known.add_sample(name, labels, value)


def _read(file: Path) -> Snapshot:
    found: Any = json.loads(file.read_text(encoding="utf-8"))
    return found if _is_alive(int(file.stem)) else [metric for metric in found if metric[2] in LAST]


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, PermissionError):
        # what belongs to somebody else has only its number
        return False
    return True
