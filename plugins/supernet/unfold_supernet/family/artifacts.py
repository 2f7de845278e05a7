"""Files of a run that need no torch: the search space, the measured subnets, and their test predictions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from unfold_supernet._types import Task
from unfold_supernet.networks.space import Space, parse_space
from unfold_supernet.scheduling.engines import EngineCosts, EnginePlan
from unfold_supernet.scheduling.escalation import SubnetPredictions, unpack_predictions
from unfold_supernet.scheduling.policies import SubnetProfile, build_profile
from unfoldkit.api import RunDir, user_error
from unfoldkit.safe_io.files import parse_object

SPACE_FILE = "family/space.json"
RECORD_FILE = "front.json"
PREDICTIONS_FILE = "answers.npz"


@dataclass(frozen=True, slots=True, kw_only=True)
class SubnetRecord:
    """What training measured of one subnet.

    Attributes:
        name: Name of the subnet.
        accuracy: On the test rows, in percent; macro AUROC or R² where the outputs are labels or values.
        sensitivity: By class, between 0 and 1; ``None`` for a class without test rows.
        macs: Multiply-accumulates for one input.
        seconds: Latency by batch size, of a space on views of the shared weights.
        onnx_seconds: Latency in ONNX Runtime; empty where there is no choice of an engine.
        onnx_bytes: Memory of the ONNX session.
        waiting: Fraction of the measured time in which the thread did not run.
    """

    name: str
    accuracy: float
    sensitivity: tuple[float | None, ...]
    macs: float
    seconds: Mapping[int, float]
    onnx_seconds: Mapping[int, float] = field(default_factory=dict)
    onnx_bytes: int = 0
    waiting: float = 0.0

    @property
    def profile(self) -> SubnetProfile:
        """Accuracy and latency for the scheduling policies."""
        return build_profile(self.name, self.accuracy, self.seconds)

    @property
    def costs(self) -> EngineCosts:
        """What was measured in both engines."""
        return EngineCosts(views=self.seconds, onnx=self.onnx_seconds, copy_bytes=self.onnx_bytes, waiting=self.waiting)


@dataclass(frozen=True, slots=True)
class SupernetRecord:
    """What training measured of a supernet.

    Attributes:
        subnets: Cheapest first.
        front: Subnets on the accuracy front.
        classes: Names of the classes, labels or values.
        reload_s: Seconds to build and load the largest subnet as a model of its own.
        task: What the outputs are.
        shared_bytes: Bytes of the shared weights with all norm statistics; 0 where no views are served.
    """

    subnets: tuple[SubnetRecord, ...]
    front: tuple[str, ...]
    classes: tuple[str, ...]
    reload_s: float
    task: Task = "classes"
    shared_bytes: int = 0

    @property
    def has_engines(self) -> bool:
        """Whether views and ONNX Runtime were both measured."""
        return bool(self.subnets) and all(subnet.onnx_seconds for subnet in self.subnets)

    def use_engines(self, plan: EnginePlan) -> SupernetRecord:
        """Take the latency of each subnet from the engine that a plan chose for it."""
        subnets = tuple(
            replace(subnet, seconds=subnet.onnx_seconds) if plan.engines[subnet.name] == "onnx" else subnet
            for subnet in self.subnets
        )
        return replace(self, subnets=subnets)


def write_record(directory: RunDir, record: SupernetRecord) -> None:
    """Write the measurements of a supernet into its run."""
    document = {
        "nets": [
            {
                "name": subnet.name,
                "accuracy": subnet.accuracy,
                "sensitivity": list(subnet.sensitivity),
                "macs": subnet.macs,
                "seconds": {str(batch): seconds for batch, seconds in subnet.seconds.items()},
                "onnx_seconds": {str(batch): seconds for batch, seconds in subnet.onnx_seconds.items()},
                "onnx_bytes": subnet.onnx_bytes,
                "waiting": subnet.waiting,
            }
            for subnet in record.subnets
        ],
        "front": list(record.front),
        "classes": list(record.classes),
        "reload_seconds": record.reload_s,
        "task": record.task,
        "shared_bytes": record.shared_bytes,
    }
    directory.write(RECORD_FILE, (json.dumps(document) + "\n").encode())


def read_record(directory: RunDir) -> SupernetRecord:
    """Read the measurements of a trained supernet.

    Raises:
        UnfoldError: The run holds none, or the file is damaged.
    """
    if not directory.has(RECORD_FILE):
        raise user_error("this supernet is not trained yet", file=str(directory.path), hint="unfold train SPEC")
    with directory.decoding(RECORD_FILE, "measurements of subnets") as content:
        document = parse_object(content)
        return SupernetRecord(
            subnets=tuple(_parse_subnet(entry) for entry in document["nets"]),
            front=tuple(document["front"]),
            classes=tuple(document["classes"]),
            reload_s=float(document["reload_seconds"]),
            # runs of earlier versions hold classifiers only
            task=parse_task(document.get("task", "classes")),
            shared_bytes=int(document.get("shared_bytes", 0)),
        )


def parse_task(name: str) -> Task:
    """Parse the name of a task.

    Raises:
        ValueError: There is no such task.
    """
    tasks: tuple[Task, ...] = get_args(Task)
    for task in tasks:
        if task == name:
            return task
    raise ValueError(f"unknown task {name!r}")


def _parse_subnet(entry: Mapping[str, Any]) -> SubnetRecord:
    return SubnetRecord(
        name=entry["name"],
        accuracy=float(entry["accuracy"]),
        sensitivity=tuple(entry["sensitivity"]),
        macs=float(entry["macs"]),
        seconds=_parse_seconds(entry["seconds"]),
        # runs of earlier versions measured one engine only
        onnx_seconds=_parse_seconds(entry.get("onnx_seconds", {})),
        onnx_bytes=int(entry.get("onnx_bytes", 0)),
        waiting=float(entry.get("waiting", 0.0)),
    )


def _parse_seconds(seconds: Mapping[str, Any]) -> dict[int, float]:
    return {int(batch): float(value) for batch, value in seconds.items()}


def read_space(directory: RunDir) -> Space:
    """Read the search space of a trained supernet.

    Raises:
        UnfoldError: The file is damaged.
    """
    with directory.decoding(SPACE_FILE, "a search space") as content:
        return parse_space(parse_object(content))


def read_predictions(directory: RunDir) -> SubnetPredictions:
    """Read the subnets' predictions on the test rows.

    Raises:
        UnfoldError: The run was trained by a version that did not store them.
    """
    if not directory.has(PREDICTIONS_FILE):
        message, hint = "this run holds no test predictions, which escalation needs", "train again with this version"
        raise user_error(message, file=str(directory.path), key="serving.escalate", hint=hint)
    with directory.decoding(PREDICTIONS_FILE, "test predictions") as content:
        return unpack_predictions(content)
