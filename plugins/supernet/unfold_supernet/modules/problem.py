"""A resolved training of a user's module, and what it measured. No torch here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unfold_supernet.family.artifacts import SubnetRecord, SupernetRecord
from unfold_supernet.family.datasets import Dataset
from unfold_supernet.training.accuracy import SubnetQuality, select_front
from unfold_supernet.training.calibration import CalibrationError
from unfold_supernet.training.problem import StandaloneComparison, TrainingOptions
from unfold_supernet.training.verdict import FamilyVerdict, Goal


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleSource:
    """Where a module comes from.

    Attributes:
        module: Name of the Python module.
        function: Name of the function in it.
        folder: Folder that is searched first.
        arguments: Keyword arguments of the function.
        weights: A safetensors file to start from.
    """

    module: str
    function: str
    folder: Path
    arguments: Mapping[str, Any]
    weights: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleProblem:
    """A resolved training of a user's module.

    Attributes:
        name: Name of the spec.
        source: Where the module comes from.
        widths: Fractions of the channels.
        depths: Fractions of the residual blocks.
        resolutions: Fractions of the input's edges.
        data: Examples; the hold-out calibrates confidences.
        options: How the family is trained.
        has_rate: Whether the spec names a learning rate.
        goal: What the family must reach.
        seed: Of weights and batches.
        fingerprint_parts: Sections of the spec on which the weights depend.
    """

    name: str
    source: ModuleSource
    widths: tuple[float, ...]
    depths: tuple[float, ...]
    resolutions: tuple[float, ...]
    data: Dataset
    options: TrainingOptions
    has_rate: bool
    goal: Goal
    seed: int
    fingerprint_parts: tuple[object, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleResult:
    """Everything that the training of a module measured; dictionaries are by member, smallest first.

    Attributes:
        qualities: Quality on the test rows.
        seconds_by_batch: Latency in ONNX Runtime by batch size.
        eager_seconds: Latency of a batch of 32 in torch.
        macs: Multiply-accumulates for one input.
        parameters: Number of parameters.
        comparisons: Comparison with networks of the same shape, trained alone for as many steps.
        calibration: Calibration error.
        verdict: What the test rows say of the family.
        groups: Number of elastic groups of channels.
        skippable: Number of blocks that may be skipped.
        inelastic: Path and reason of each part that is shared in full.
        training_s: Seconds of training; about 0 if the run was already trained.
        load_s: Seconds to load the largest member into ONNX Runtime.
    """

    qualities: dict[str, SubnetQuality]
    seconds_by_batch: dict[str, dict[int, float]]
    eager_seconds: dict[str, float]
    macs: dict[str, float]
    parameters: dict[str, int]
    comparisons: dict[str, StandaloneComparison]
    calibration: dict[str, CalibrationError]
    verdict: FamilyVerdict
    groups: int
    skippable: int
    inelastic: tuple[tuple[str, str], ...]
    training_s: float
    load_s: float

    @property
    def front(self) -> tuple[str, ...]:
        """Members on the accuracy front, smallest first."""
        names = list(self.qualities)
        return tuple(names[index] for index in select_front(list(self.macs.values()), list(self.qualities.values())))

    def summarise(self, classes: tuple[str, ...]) -> SupernetRecord:
        """Summarise the measurements that serving needs."""
        subnets = tuple(
            SubnetRecord(
                name=name,
                accuracy=quality.accuracy,
                sensitivity=tuple(None if math.isnan(value) else value for value in quality.sensitivity),
                macs=self.macs[name],
                seconds=self.seconds_by_batch[name],
            )
            for name, quality in self.qualities.items()
        )
        return SupernetRecord(subnets, self.front, classes, self.load_s)
