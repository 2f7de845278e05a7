"""How wrong step times may be: an interval over groups of runs (GPU, engine, precision), not over rows.

Rows of a group share their error, so an interval over rows promises too much for the next group. In logarithms, the
half-width is sqrt((t sd sqrt(1 + 1/k))^2 + q^2) around the mean bias of k groups, with the standard deviation of their
biases and the largest error within a group. With few groups it is a guide, not a guarantee.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from unfold_pipeline.engine.step_times.columns import TableEnd

CONFIDENCE = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationGroup:
    """Measured rows of one GPU, engine and precision, compared with their prediction.

    Attributes:
        name: GPU, engine, precision and model.
        rows: Measured rows.
        bias: Median of predicted over measured TPOT.
        within: 90 % of the rows lie within this absolute log error of the bias.
    """

    name: str
    rows: int
    bias: float
    within: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInterval:
    """An interval of the factor on predicted step times.

    Attributes:
        source: Where the step times come from: ``tables``, ``profile``, ``runs``, ``endpoint`` or ``roofline``.
        groups: Groups that the interval rests on.
        low: Factor at the lower end.
        high: Factor at the upper end.
        confidence: Probability that the interval holds, as far as groups are alike.
        files: The files that were read.
        ends: Sizes beyond the tables, at which step times are extrapolated.
        decode_tokens: Most tokens of all decodes of a step in the tables; 0 if no table limits them.
    """

    source: str
    groups: int
    low: float
    high: float
    confidence: float = CONFIDENCE
    files: tuple[str, ...] = ()
    ends: tuple[TableEnd, ...] = ()
    decode_tokens: int = 0


def list_table_groups() -> tuple[CalibrationGroup, ...]:
    """Return the groups that operator tables were compared with: table ``groups`` of the benchmark engine-fidelity."""
    rows = (
        ("H100, TensorRT-LLM, bf16, Llama-3.1-8B", 177, 0.920, 0.161),
        ("H100, vLLM, fp8, Llama-3.1-70B", 45, 0.882, 0.093),
        ("H200, TensorRT-LLM, fp8, Llama-3.1-70B", 72, 1.241, 0.201),
        ("H200, vLLM, fp8, Llama-3.1-70B", 60, 0.952, 0.118),
    )
    return tuple(
        CalibrationGroup(name=name, rows=count, bias=bias, within=within) for name, count, bias, within in rows
    )


def list_roofline_groups() -> tuple[CalibrationGroup, ...]:
    """Return the groups that the roofline was compared with: ``roofline_groups`` of the benchmark engine-fidelity."""
    rows = (
        ("H100, TensorRT-LLM, bf16, Llama-3.1-8B", 177, 0.913, 0.304),
        ("H100, vLLM, fp8, Llama-3.1-70B", 45, 0.829, 0.200),
        ("H200, TensorRT-LLM, fp8, Llama-3.1-70B", 72, 0.965, 0.222),
        ("H200, vLLM, fp8, Llama-3.1-70B", 60, 0.820, 0.235),
    )
    return tuple(CalibrationGroup(name=name, rows=n, bias=bias, within=within) for name, n, bias, within in rows)


def compute_interval(groups: Sequence[CalibrationGroup], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the interval of measured over predicted step times for a group that is not among ``groups``.

    Args:
        groups: At least two groups.
        confidence: Probability that the interval holds, as far as groups are alike.
    """
    biases = np.log([group.bias for group in groups])
    spread = float(biases.std(ddof=1)) * math.sqrt(1 + 1 / biases.size)
    t_value = float(stats.t.ppf((1 + confidence) / 2, biases.size - 1))
    within = max(group.within for group in groups) * _normal_ratio(confidence)
    half = math.hypot(t_value * spread, within)
    center = -float(biases.mean())
    return math.exp(center - half), math.exp(center + half)


def compute_fitted_interval(within: float, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the interval of an engine with step times fitted to its runs: the bias is gone, the part within stays."""
    half = within * _normal_ratio(confidence)
    return math.exp(-half), math.exp(half)


def build_endpoint_interval(within: float, confidence: float = CONFIDENCE) -> StepInterval:
    """Return the interval of a profiled engine: 90 % of its own latencies were simulated within ``within``."""
    low, high = compute_fitted_interval(within, confidence)
    return StepInterval(source="endpoint", groups=1, low=low, high=high, confidence=confidence, files=())


def build_interval(source: str, confidence: float = CONFIDENCE, files: tuple[str, ...] = ()) -> StepInterval:
    """Return the interval of a source of step times."""
    if source == "runs":
        low, high = compute_fitted_interval(max(group.within for group in list_table_groups()), confidence)
        return StepInterval(source=source, groups=1, low=low, high=high, confidence=confidence, files=files)
    groups = list_table_groups()
    low, high = compute_interval(groups, confidence)
    if source == "roofline":
        # its shares were compared on one generation of GPUs only, so it never promises more than tables
        other_low, other_high = compute_interval(list_roofline_groups(), confidence)
        low, high = min(low, other_low), max(high, other_high)
    return StepInterval(source=source, groups=len(groups), low=low, high=high, confidence=confidence, files=files)


def _normal_ratio(confidence: float) -> float:
    """Return by which factor a 90 % bound grows or shrinks at another confidence."""
    return float(stats.norm.ppf((1 + confidence) / 2) / stats.norm.ppf((1 + CONFIDENCE) / 2))
