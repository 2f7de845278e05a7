"""A resolved training of a user's module, and what it measured. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from unfold_supernet._types import Task
from unfold_supernet.family.artifacts import SupernetRecord
from unfold_supernet.family.datasets import Dataset
from unfold_supernet.family.target_leakage import Leak
from unfold_supernet.modules.int8 import PrecisionChoice
from unfold_supernet.training.accuracy import Quality, SubnetQuality, select_front
from unfold_supernet.training.confidence_calibration import CalibrationError
from unfold_supernet.training.head_quality import HeadQuality
from unfold_supernet.training.problem import StandaloneComparison, record_members
from unfold_supernet.training.verdict import FamilyVerdict, Goal

EAGER_BATCH = 32
"""Rows of the batch in which ONNX Runtime is compared with torch."""
FitTask = Task | Literal["embeddings"]
"""What a family learns; embeddings are close within a class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FitOptions:
    """How a family is trained.

    Attributes:
        task: What the outputs are.
        epochs: Passes over the data.
        batch: Rows in a step.
        rate: Largest learning rate, after warm-up.
        optimizer: ``adamw``, or ``sgd`` with Nesterov momentum.
        decay: Weight decay.
        distill: Weight of the teacher's outputs in the loss of the smaller members, between 0 and 1.
        samples: Random members in a step of a long list, beside the largest and the smallest.
        warmup: Fraction of the steps in which the rate rises.
        clip: Maximum gradient norm.
        class_weights: Weight of each class or label in the loss; ``None`` weighs them alike.
        dimensions: Lengths of the prefixes of an embedding that are embeddings too; none stands for all dimensions.
        temperature: Divides the cosines of embeddings in their loss.
        calibrate: Rows for the members' batch-norm statistics after training.
        seed: Of the batches and the random members.
    """

    task: FitTask = "classes"
    epochs: int = 10
    batch: int = 64
    rate: float = 1e-3
    optimizer: Literal["adamw", "sgd"] = "adamw"
    decay: float = 1e-4
    distill: float = 0.5
    samples: int = 1
    warmup: float = 0.05
    clip: float = 5.0
    class_weights: tuple[float, ...] | None = None
    dimensions: tuple[int, ...] = ()
    temperature: float = 0.1
    calibrate: int = 4096
    seed: int = 0


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
        fit: How the family is trained.
        compares: Whether to train standalone members for comparison.
        threads: Threads of torch.
        goal: What the family must reach.
        max_int8_loss: Largest accuracy that int8 may cost a member, in points; ``None`` keeps all in float32.
        seed: Of the fresh weights.
        fingerprint_parts: Sections of the spec on which the weights depend.
        leaks: Columns that alone predict a target.
    """

    name: str
    source: ModuleSource
    widths: tuple[float, ...]
    depths: tuple[float, ...]
    resolutions: tuple[float, ...]
    data: Dataset
    fit: FitOptions
    compares: bool
    threads: int
    goal: Goal
    max_int8_loss: float | None
    seed: int
    fingerprint_parts: tuple[object, ...]
    leaks: tuple[Leak, ...] = ()


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
        calibration: Calibration error; empty for real values and without validation rows.
        verdict: What the test rows say of the family.
        groups: Number of elastic groups of channels.
        attentions: Number of attention layers that lose heads.
        skippable: Number of blocks that may be skipped.
        inelastic: Path and reason of each part that is shared in full.
        training_s: Seconds of training, with those before it was killed; about 0 if the run was already trained.
        load_s: Seconds to load the largest member into ONNX Runtime.
        precisions: Choice of int8 or float32; empty without ``max_int8_loss``.
        takes_extra: Whether the module takes the numbers beside its inputs.
    """

    qualities: dict[str, Quality]
    seconds_by_batch: dict[str, dict[int, float]]
    eager_seconds: dict[str, float]
    macs: dict[str, float]
    parameters: dict[str, int]
    comparisons: dict[str, StandaloneComparison]
    calibration: dict[str, CalibrationError]
    verdict: FamilyVerdict
    groups: int
    attentions: int
    skippable: int
    inelastic: tuple[tuple[str, str], ...]
    training_s: float
    load_s: float
    precisions: dict[str, PrecisionChoice]
    takes_extra: bool = False

    @property
    def front(self) -> tuple[str, ...]:
        """Members on the accuracy front, smallest first."""
        names = list(self.qualities)
        return tuple(names[index] for index in select_front(list(self.macs.values()), list(self.qualities.values())))

    @property
    def classifiers(self) -> dict[str, SubnetQuality]:
        """Qualities of members that predict one class a row; empty for other tasks."""
        return {name: quality for name, quality in self.qualities.items() if isinstance(quality, SubnetQuality)}

    @property
    def heads(self) -> dict[str, HeadQuality]:
        """Qualities of members that predict labels or real values; empty for classifiers."""
        return {name: quality for name, quality in self.qualities.items() if isinstance(quality, HeadQuality)}

    def summarize(self, names: tuple[str, ...]) -> SupernetRecord:
        """Summarize the measurements that serving needs; ``names`` are those of classes, labels or values."""
        subnets = record_members(self.qualities, list(self.macs.values()), self.seconds_by_batch)
        return SupernetRecord(
            subnets=subnets, front=self.front, classes=names, reload_s=self.load_s, task=self.verdict.task
        )
