"""Metrics of several processes as one: each stores a snapshot in a file, and whichever is scraped adds them up.

``prometheus_client.multiprocess`` does not fit. It must be configured by an environment variable before its first
import, it ignores collectors such as :class:`~.metrics.RequestCollector`, and it has no gauges that call a function.
"""

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
# times are not summed: the earliest one counts
TIME_SUFFIXES = ("_created", "_start_time_seconds")
CUMULATIVE_TYPES = frozenset({"counter", "histogram"})


@dataclass(frozen=True, slots=True)
class PeerProcesses:
    """The processes of one service; ``folder`` holds one file per process, named after its process id."""

    folder: Path

    def store(self, registry: CollectorRegistry) -> None:
        """Store the metrics of this process; if the disk is full, the sums of others lag behind."""
        file = self.folder / f"{os.getpid()}.json"
        with suppress(OSError):
            draft = file.with_suffix(".new")
            draft.write_text(json.dumps(take_snapshot(registry)), encoding="utf-8")
            draft.replace(file)

    def merge(self, registry: CollectorRegistry) -> CollectorRegistry:
        """Return the sums over all processes; of ended processes, only cumulative metrics count."""
        peers = [_read(file) for file in self.folder.glob("*.json") if file.stem != str(os.getpid())]
        # described, so that metrics can be selected by name
        merged = CollectorRegistry(auto_describe=True)
        merged.register(SummedSnapshots([take_snapshot(registry), *peers]))
        return merged


@dataclass(slots=True)
class MetricsSource:
    """The metrics of a service: those of this process, or the sums over all processes once it has peers."""

    registry: CollectorRegistry
    peers: PeerProcesses | None = None

    def read(self) -> CollectorRegistry:
        """Return the metrics; those of other processes are at most a heartbeat old."""
        return self.registry if self.peers is None else self.peers.merge(self.registry)

    def text(self) -> bytes:
        """Return the metrics in the exposition format of Prometheus."""
        return bytes(generate_latest(self.read()))


@dataclass(frozen=True, slots=True, eq=False)
class SummedSnapshots:
    """The sums of snapshots by name and labels of a sample. A ``Collector`` of prometheus_client by shape."""

    snapshots: list[Snapshot] = field(default_factory=list)

    def collect(self) -> Iterator[Metric]:
        """Yield each metric once."""
        metrics: dict[str, Metric] = {}
        for name, text, kind, samples in (entry for snapshot in self.snapshots for entry in snapshot):
            metric = metrics.setdefault(name, Metric(name, text, kind))
            for sample, labels, value in samples:
                _add_sample(metric, sample, labels, value)
        yield from metrics.values()


def take_snapshot(registry: CollectorRegistry) -> Snapshot:
    """Return the current contents of a registry as plain data."""
    metrics: Iterable[Metric] = registry.collect()
    return [(m.name, m.documentation, m.type, [(s.name, s.labels, s.value) for s in m.samples]) for m in metrics]


def _add_sample(metric: Metric, name: str, labels: dict[str, str], value: float) -> None:
    for index, sample in enumerate(metric.samples):
        if sample.name == name and sample.labels == labels:
            is_time = name.endswith(TIME_SUFFIXES)
            metric.samples[index] = sample._replace(value=min(sample.value, value) if is_time else sample.value + value)
            return
    metric.add_sample(name, labels, value)


def _read(file: Path) -> Snapshot:
    snapshot: Any = json.loads(file.read_text(encoding="utf-8"))
    return snapshot if _is_alive(int(file.stem)) else [entry for entry in snapshot if entry[2] in CUMULATIVE_TYPES]


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, PermissionError):
        # a process of another user has reused the id
        return False
    return True
