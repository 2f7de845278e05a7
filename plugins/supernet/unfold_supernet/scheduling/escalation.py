"""Escalation: the most accurate subnet recomputes the rows that a small subnet is unsure of.

To a policy, a pair of subnets is one more candidate. Its accuracy lies between theirs or above. Its latency is that of
the small subnet plus that of the large one for the unsure rows.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from unfold_supernet._types import Float32Array, IntArray
from unfold_supernet.scheduling.policies import SubnetProfile
from unfoldkit.safe_io.arrays import read_npz

UNSURE_MARGIN = 2.0
"""Standard deviations above the mean number of unsure rows for which a pair's latency has room."""


@dataclass(frozen=True, slots=True)
class SubnetPredictions:
    """Predictions of every subnet on the test rows.

    Attributes:
        names: Subnets, cheapest first.
        predictions: Predicted classes [subnets, rows].
        confidence: Confidence of each prediction [subnets, rows].
        labels: True classes [rows].
    """

    names: tuple[str, ...]
    predictions: IntArray
    confidence: Float32Array
    labels: IntArray


def pack_predictions(tested: SubnetPredictions) -> bytes:
    """Serialize predictions as an NPZ archive of plain arrays."""
    stream = io.BytesIO()
    np.savez_compressed(
        stream,
        names=np.array(tested.names),
        said=tested.predictions.astype(np.int32),
        confidence=tested.confidence.astype(np.float32),
        y=tested.labels.astype(np.int32),
    )
    return stream.getvalue()


def unpack_predictions(content: bytes) -> SubnetPredictions:
    """Read predictions from an archive; loading executes no code."""
    stored = read_npz(content)
    predictions, labels = stored["said"].astype(np.int64), stored["y"].astype(np.int64)
    return SubnetPredictions(tuple(map(str, stored["names"])), predictions, stored["confidence"], labels)


def build_pairs(
    profiles: Sequence[SubnetProfile], tested: SubnetPredictions, threshold: float
) -> dict[SubnetProfile, Mapping[int, float | None]]:
    """Pair every smaller subnet with the most accurate one.

    Args:
        profiles: The subnets.
        tested: Their predictions on the test rows.
        threshold: Confidence below which a row escalates; chosen by the caller, never fitted to these rows.

    Returns:
        Profile of each pair, with its sensitivity by class.
    """
    rows = {name: row for row, name in enumerate(tested.names)}
    large = max(profiles, key=lambda profile: profile.accuracy)
    pairs: dict[SubnetProfile, Mapping[int, float | None]] = {}
    for small in profiles:
        if small is large:
            continue
        unsure = tested.confidence[rows[small.name]] < threshold
        combined = np.where(unsure, tested.predictions[rows[large.name]], tested.predictions[rows[small.name]])
        correct = combined == tested.labels
        sensitivity = {int(c): float(correct[tested.labels == c].mean()) for c in np.unique(tested.labels)}
        name, accuracy = f"{small.name}>{large.name}", float(correct.mean()) * 100
        pair = SubnetProfile(name, accuracy, small.seconds, large.name, unsure.mean())
        pairs[set_pair_latency(pair, small, large)] = sensitivity
    return pairs


def set_pair_latency(pair: SubnetProfile, small: SubnetProfile, large: SubnetProfile) -> SubnetProfile:
    """Set a pair's latency: the small subnet for all rows, the large one for more unsure rows than on average."""
    seconds, fraction = [], float(pair.unsure_fraction)
    for size, time in small.seconds:
        count = math.ceil(size * fraction + UNSURE_MARGIN * math.sqrt(size * fraction * (1 - fraction)))
        escalated_s = large.estimate_latency(max(1, min(size, count))) if fraction > 0 else 0.0
        seconds.append((size, time + escalated_s))
    return replace(pair, seconds=tuple(seconds), unsure_fraction=fraction)


def get_small_subnet(profile: SubnetProfile) -> str:
    """Get the name of the subnet that runs first; of a pair, the small one."""
    return profile.name.partition(">")[0]
