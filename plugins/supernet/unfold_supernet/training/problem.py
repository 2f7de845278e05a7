"""A resolved training run, and everything that it measured. No torch here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from unfold_supernet.family.artifacts import SubnetRecord, SupernetRecord
from unfold_supernet.family.datasets import Dataset
from unfold_supernet.family.target_leakage import Leak
from unfold_supernet.networks.space import Space, Subnet, count_macs
from unfold_supernet.scheduling.engines import EngineCosts, EnginePlan, plan_engines
from unfold_supernet.training.accuracy import Difference, Quality, SubnetQuality, select_front
from unfold_supernet.training.confidence_calibration import CalibrationError
from unfold_supernet.training.verdict import FamilyVerdict, Goal


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOptions:
    """How the supernet is trained.

    Attributes:
        epochs: Epochs, or those of the largest subnet under progressive shrinking.
        rule: ``all``, ``sandwich`` or ``progressive``.
        samples: Random subnets in a step of the sandwich rule.
        distill: Weight of the distillation loss against the largest subnet.
        delay: Epochs of the largest subnet before the others join.
        sort: Whether channels are sorted before narrow subnets join.
        batch: Rows in a step.
        rate: Learning rate after warm-up.
        warmup: Epochs of warm-up.
        decay: Weight decay.
        clip: Maximum gradient norm.
        smoothing: Label smoothing.
        noise: Standard deviation of input noise.
        shift: Maximum random shift of the inputs.
        calibrate: Examples for the norm statistics.
        standalone: Whether to train standalone models for comparison.
        threads: Threads of torch.
    """

    epochs: int
    rule: str
    samples: int
    distill: float
    delay: int
    sort: bool
    batch: int
    rate: float
    warmup: int
    decay: float
    clip: float
    smoothing: float
    noise: float
    shift: int
    calibrate: int
    standalone: bool
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions:
    """How a large space is searched.

    Attributes:
        measured: Subnets to measure for the predictor.
        points: Limits on MACs.
        population: Subnets in a generation.
        generations: Generations at each limit.
    """

    measured: int
    points: int
    population: int
    generations: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingProblem:
    """A resolved training run.

    Attributes:
        name: Name of the spec.
        form: Form of the subnets.
        space: All candidate subnets.
        data: Examples; the hold-out selects subnets and calibrates confidences.
        is_searched: Whether the space is too large to train every subnet.
        options: Training options.
        goal: What the family must reach.
        search: Search options.
        seed: Of weights, batches and search.
        fingerprint_parts: Sections of the spec on which the weights depend.
        leaks: Columns that alone predict a target.
    """

    name: str
    form: str
    space: Space
    data: Dataset
    is_searched: bool
    options: TrainingOptions
    goal: Goal
    search: SearchOptions
    seed: int
    fingerprint_parts: tuple[object, ...]
    leaks: tuple[Leak, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """Result of a search.

    Attributes:
        subnets: The selected subnets, cheapest first.
        count: Subnets in the space.
        measured: Subnets measured.
        rank_correlation: Spearman's correlation of predicted and measured accuracy on a fifth held out from the
            predictor.
    """

    subnets: tuple[Subnet, ...]
    count: int
    measured: int
    rank_correlation: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchCosts:
    """What a model switch costs, by mechanism.

    Attributes:
        switch_p50_s: Median penalty of the first answer after a change of subnet, against the next answer of the same
            subnet; one row each, back to back.
        switch_p99_s: 99th percentile of the same.
        view_ratios: Time of a batch on views over that on contiguous copies, by subnet.
        bind_s: Time to bind the views again.
        load_state_s: Time to copy a state from memory into an existing model.
        reload_s: Time to build a model and read its file's bytes.
        shared_bytes: Bytes of the supernet with all norm statistics.
        separate_bytes: Bytes of its subnets as separate models.
    """

    switch_p50_s: float
    switch_p99_s: float
    view_ratios: dict[str, float]
    bind_s: float
    load_state_s: float
    reload_s: float
    shared_bytes: int
    separate_bytes: int


@dataclass(frozen=True, slots=True)
class StandaloneComparison:
    """A subnet in the supernet, and the same architecture trained as a standalone model."""

    shared: Quality
    standalone: Quality

    @property
    def gap(self) -> Difference:
        """The weight-sharing gap: how much better the standalone model is."""
        return self.standalone.compare(self.shared)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingResult:
    """Everything that training measured; dictionaries are by subnet, cheapest first.

    Attributes:
        space: The trained subnets.
        qualities: Quality on the test rows.
        seconds_by_batch: Latency by batch size, on views.
        engine_costs: What was measured of each subnet on views and in ONNX Runtime.
        comparisons: Comparison with standalone models.
        calibration: Calibration error by subnet; empty without held-out rows.
        verdict: What the test rows say of the family.
        switch_costs: Cost of a model switch.
        steps: Training steps.
        training_s: Seconds of training, with those before it was killed; about 0 if the run was already trained.
        search: Result of the search, if the space was searched.
    """

    space: Space
    qualities: dict[str, SubnetQuality]
    seconds_by_batch: dict[str, dict[int, float]]
    engine_costs: dict[str, EngineCosts]
    comparisons: dict[str, StandaloneComparison]
    calibration: dict[str, CalibrationError]
    verdict: FamilyVerdict
    switch_costs: SwitchCosts
    steps: dict[str, int]
    training_s: float
    search: SearchResult | None = None

    @property
    def front(self) -> tuple[str, ...]:
        """Subnets on the accuracy front, cheapest first."""
        names = list(self.qualities)
        return tuple(names[index] for index in select_front(self.macs, list(self.qualities.values())))

    @property
    def macs(self) -> list[float]:
        """Multiply-accumulates of each subnet."""
        by_name = {subnet.name: float(count_macs(self.space, subnet)) for subnet in self.space.subnets}
        return [by_name[name] for name in self.qualities]

    def summarize(self, classes: tuple[str, ...]) -> SupernetRecord:
        """Summarize the measurements that planning and serving need."""
        subnets = tuple(
            replace(
                subnet,
                onnx_seconds=self.engine_costs[subnet.name].onnx,
                onnx_bytes=self.engine_costs[subnet.name].copy_bytes,
                waiting=self.engine_costs[subnet.name].waiting,
            )
            for subnet in record_members(self.qualities, self.macs, self.seconds_by_batch)
        )
        return SupernetRecord(
            subnets=subnets,
            front=self.front,
            classes=classes,
            reload_s=self.switch_costs.reload_s,
            shared_bytes=self.switch_costs.shared_bytes,
        )

    @property
    def engine_plan(self) -> EnginePlan:
        """The engine of each subnet where memory has no limit."""
        return plan_engines(self.engine_costs, self.switch_costs.shared_bytes)


def record_members(
    qualities: Mapping[str, Quality], macs: Sequence[float], seconds: Mapping[str, Mapping[int, float]]
) -> tuple[SubnetRecord, ...]:
    """Record what planning and serving need of each member: its quality, operations and latency."""
    return tuple(
        SubnetRecord(
            name=name,
            accuracy=quality.score,
            sensitivity=_list_sensitivity(quality),
            macs=operations,
            seconds=seconds[name],
        )
        for (name, quality), operations in zip(qualities.items(), macs, strict=True)
    )


def _list_sensitivity(quality: Quality) -> tuple[float | None, ...]:
    """List the sensitivity by class; none for tasks without classes."""
    values = quality.sensitivity if isinstance(quality, SubnetQuality) else ()
    return tuple(None if math.isnan(value) else value for value in values)
