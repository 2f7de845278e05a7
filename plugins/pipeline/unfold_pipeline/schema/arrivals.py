"""The ``arrivals`` section of a spec: a renewal process, a named rate profile, or a recorded trace."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field

from unfoldkit.api import Duration, Fraction, Model, Problem, Rate

DEFAULT_DURATION_S = 600.0
TRAFFIC_KEYS = ("process", "shape", "trace")
KEYS_WITHOUT_MEANING = {
    "process": ("column", "counts", "rates", "match", "time_format", "unit", "compress"),
    "shape": ("rate", "duration", "column", "counts", "rates", "match", "time_format", "unit", "compress"),
    "trace": ("rate", "duration", "cv", "scv"),
}
FIXED_CV = {"poisson": 1.0, "constant": 0.0}
ARRAY_SUFFIXES = (".npz", ".npy")


class Arrivals(Model):
    """How queries arrive: a process, a named shape, or a recorded trace."""

    process: Literal["poisson", "gamma", "constant"] | None = Field(default=None, description="a renewal process")
    rate: Annotated[Rate, Field(gt=0)] | None = Field(default=None, description="mean queries per second")
    cv: Annotated[float, Field(ge=0, le=50)] | None = Field(
        default=None, description="coefficient of variation of the inter-arrival times"
    )
    scv: Annotated[float, Field(ge=0, le=2500)] | None = Field(default=None, description="the square of cv")
    duration: Annotated[Duration, Field(gt=0)] | None = Field(default=None, description="length of the sample")
    shape: str | None = Field(default=None, description="a named rate profile, such as big-spike")
    trace: str | None = Field(default=None, description="a file of arrival times or counts: CSV, NPZ, NPY or a log")
    column: str | None = Field(default=None, description="the column of the trace that holds the times")
    counts: str | None = Field(
        default=None,
        description="the column that counts arrivals per interval; detected by name unless set, '' for none",
    )
    rates: str | None = Field(
        default=None, description="the column with arrivals per second, per interval; detected by name unless set"
    )
    match: str | None = Field(default=None, description="read only lines or rows of the trace that contain this text")
    time_format: str | None = Field(
        default=None,
        description="strptime directives of times that are neither ISO 8601, numbers nor common log format",
    )
    unit: Literal["ns", "us", "ms", "s", "min", "h", "d"] | None = Field(
        default=None, description="the unit of numeric times in the trace, from any origin"
    )
    input: Annotated[int, Field(ge=1, le=1 << 24)] | str | None = Field(
        default=None, description="prompt tokens of a request, for an engine: a column of the trace, or a number"
    )
    output: Annotated[int, Field(ge=1, le=1 << 24)] | str | None = Field(
        default=None, description="generated tokens of a request, for an engine: a column of the trace, or a number"
    )
    lengths: str | None = Field(
        default=None,
        description="a file with prompt and generated tokens, for an engine: each request draws a row of it, "
        "where the traffic has no tokens of its own",
    )
    compress: Annotated[float, Field(gt=0)] = Field(default=1.0, description="replay the trace this many times faster")
    scale: Annotated[float, Field(gt=0)] = Field(default=1.0, description="multiply the rate and keep the length")
    share: Annotated[Fraction, Field(gt=0)] = Field(default=1.0, description="plan on this first part of the trace")


def label_arrivals(arrivals: Arrivals | tuple[Arrivals, ...]) -> tuple[tuple[str, Arrivals], ...]:
    """Return each traffic description with its key in the spec, such as ``arrivals[1]``."""
    if isinstance(arrivals, Arrivals):
        return (("arrivals", arrivals),)
    return tuple((f"arrivals[{index}]", traffic) for index, traffic in enumerate(arrivals))


def validate_arrivals(arrivals: Arrivals | tuple[Arrivals, ...]) -> Iterable[Problem]:
    """Yield the contradictions within each traffic description."""
    if isinstance(arrivals, Arrivals):
        yield from _validate_traffic(("arrivals",), arrivals)
        return
    for index, traffic in enumerate(arrivals):
        yield from _validate_traffic(("arrivals", index), traffic)


def _validate_traffic(path: tuple[str | int, ...], traffic: Arrivals) -> Iterable[Problem]:
    kinds = [name for name in TRAFFIC_KEYS if getattr(traffic, name) is not None]
    if len(kinds) != 1:
        message = "two kinds of traffic at once" if kinds else "no traffic is described"
        yield Problem(path, message, hint="one of: process, shape, trace")
        return
    if traffic.process and traffic.rate is None:
        yield Problem((*path, "rate"), "a process needs a rate", hint="such as rate: 100/s")
    if traffic.cv is not None and traffic.scv is not None:
        yield Problem((*path, "scv"), "cv and scv describe the same quantity", hint="leave one out")
    if traffic.counts and traffic.rates:
        yield Problem((*path, "rates"), "counts and rates describe the same quantity", hint="leave one out")
    yield from _validate_burstiness(path, traffic)
    yield from _validate_lengths(path, traffic)
    for name in KEYS_WITHOUT_MEANING[kinds[0]]:
        if getattr(traffic, name) != Arrivals.model_fields[name].default:
            yield Problem((*path, name), f"cannot be combined with {kinds[0]}", hint="leave it out")
    holds_arrays = bool(traffic.trace) and str(traffic.trace).endswith(ARRAY_SUFFIXES)
    for name in ("counts", "rates", "match"):
        if holds_arrays and getattr(traffic, name) is not None:
            yield Problem((*path, name), "applies to tables and logs, but this file holds arrays", hint="leave it out")


def _validate_burstiness(path: tuple[str | int, ...], traffic: Arrivals) -> Iterable[Problem]:
    fixed = FIXED_CV.get(str(traffic.process))
    for name in ("cv", "scv"):
        if fixed is not None and getattr(traffic, name) not in (None, fixed):
            message = f"a {traffic.process} process has cv {fixed:g}"
            yield Problem((*path, name), message, hint="process: gamma, or leave it out")
    if traffic.process == "gamma" and 0 in (traffic.cv, traffic.scv):
        yield Problem((*path, "process"), "a gamma process with cv 0 is constant", hint="process: constant")


def _validate_lengths(path: tuple[str | int, ...], traffic: Arrivals) -> Iterable[Problem]:
    for name in ("input", "output"):
        if traffic.lengths is not None and isinstance(getattr(traffic, name), int):
            message = "the file of lengths has the tokens of each request"
            yield Problem((*path, name), message, hint="a column of that file, or leave lengths out")
