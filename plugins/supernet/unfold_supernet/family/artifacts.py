"""Files of a run that need no torch: the search space, the measured subnets, and their test predictions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unfold_supernet.networks.space import Space, parse_space
from unfold_supernet.scheduling.escalation import SubnetPredictions, unpack_predictions
from unfold_supernet.scheduling.policies import SubnetProfile, build_profile
from unfoldkit.api import RunDir, fail

SPACE_FILE = "family/space.json"
RECORD_FILE = "front.json"
PREDICTIONS_FILE = "answers.npz"


@dataclass(frozen=True, slots=True, kw_only=True)
class SubnetRecord:
    """What training measured of one subnet.

    Attributes:
        name: Name of the subnet.
        accuracy: On the test rows, in percent.
        sensitivity: By class, between 0 and 1; ``None`` for a class without test rows.
        macs: Multiply-accumulates for one input.
        seconds: Latency by batch size.
    """

    name: str
    accuracy: float
    sensitivity: tuple[float | None, ...]
    macs: float
    seconds: Mapping[int, float]

    @property
    def profile(self) -> SubnetProfile:
        """Accuracy and latency for the scheduling policies."""
        return build_profile(self.name, self.accuracy, self.seconds)


@dataclass(frozen=True, slots=True)
class SupernetRecord:
    """What training measured of a supernet.

    Attributes:
        subnets: Cheapest first.
        front: Subnets on the accuracy front.
        classes: Names of the classes.
        reload_s: Seconds to build and load the largest subnet as a model of its own.
    """

    subnets: tuple[SubnetRecord, ...]
    front: tuple[str, ...]
    classes: tuple[str, ...]
    reload_s: float


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
            }
            for subnet in record.subnets
        ],
        "front": list(record.front),
        "classes": list(record.classes),
        "reload_seconds": record.reload_s,
    }
    directory.write(RECORD_FILE, (json.dumps(document) + "\n").encode())


def read_record(directory: RunDir) -> SupernetRecord:
    """Read the measurements of a trained supernet.

    Raises:
        UnfoldError: The run holds none.
    """
    if not directory.has(RECORD_FILE):
        raise fail("this supernet is not trained yet", file=str(directory.path), hint="unfold train SPEC")
    document = json.loads(directory.read(RECORD_FILE))
    subnets = tuple(_parse_subnet(entry) for entry in document["nets"])
    return SupernetRecord(subnets, tuple(document["front"]), tuple(document["classes"]), document["reload_seconds"])


def _parse_subnet(entry: Mapping[str, Any]) -> SubnetRecord:
    return SubnetRecord(
        name=entry["name"],
        accuracy=entry["accuracy"],
        sensitivity=tuple(entry["sensitivity"]),
        macs=entry["macs"],
        seconds={int(batch): seconds for batch, seconds in entry["seconds"].items()},
    )


def read_space(directory: RunDir) -> Space:
    """Read the search space of a trained supernet."""
    return parse_space(json.loads(directory.read(SPACE_FILE)))


def read_predictions(directory: RunDir) -> SubnetPredictions:
    """Read the subnets' predictions on the test rows.

    Raises:
        UnfoldError: The run was trained by a version that did not store them.
    """
    if not directory.has(PREDICTIONS_FILE):
        message, hint = "this run holds no test predictions, which escalation needs", "train again with this version"
        raise fail(message, file=str(directory.path), key="serving.escalate", hint=hint)
    return unpack_predictions(directory.read(PREDICTIONS_FILE))
