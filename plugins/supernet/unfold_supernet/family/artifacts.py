"""Files of a run that need no torch: the search space, the measured subnets, and their test predictions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unfold_supernet.networks.space import Space, parse_space
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
        )


def _parse_subnet(entry: Mapping[str, Any]) -> SubnetRecord:
    return SubnetRecord(
        name=entry["name"],
        accuracy=float(entry["accuracy"]),
        sensitivity=tuple(entry["sensitivity"]),
        macs=float(entry["macs"]),
        seconds={int(batch): float(seconds) for batch, seconds in entry["seconds"].items()},
    )


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
