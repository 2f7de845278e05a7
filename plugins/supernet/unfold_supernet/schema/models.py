"""What a user writes in a spec of kind ``supernet``."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field

from unfoldkit.api import Bandwidth, Bytes, Duration, Fraction, Frequency, Model, Percent, Problem, Spec

KIB = 1024
EDGES = {"digits": 8, "mitbih": 128}
"""Of the inputs that are known before they are read."""
MOST = 300_000
"""Nets of a space: a search looks at each of them."""
Preset = Literal[
    "zcu104", "alveo-u50", "weight-stationary", "output-stationary", "row-stationary", "dpu-zcu104"
]  # fmt: skip
SIZES = tuple(KIB * size for size in (256, 512, 1024, 1728, 2048, 3072, 4096, 6144, 8192))
BANDWIDTHS = (19.2e9, 4e9, 2e9, 1e9)


class EnergySpec(Model):
    """Picojoules, by default in the manner of Horowitz's table for 45 nm."""

    mac: Annotated[float, Field(ge=0, le=1e6)] = Field(
        default=0.23, description="of a multiply-accumulate; the default is that of INT8"
    )
    on_chip: Annotated[float, Field(ge=0, le=1e6)] = Field(default=12.5, description="of a byte from on-chip memory")
    off_chip: Annotated[float, Field(ge=0, le=1e6)] = Field(default=160.0, description="of a byte from off-chip memory")


Bits = Literal[8, 16, 32]


class PrecisionSpec(Model):
    """Bits of the numbers that are stored and moved; the array does as many operations a cycle at any of them."""

    weights: Bits | None = Field(
        default=None, description="of a weight; else the preset's, 16 for row-stationary, or 8"
    )
    maps: Bits | None = Field(default=None, description="of a value of image, activation map and result; else likewise")


class AcceleratorSpec(Model):
    """A simulated accelerator: a preset, and what differs from it."""

    preset: Preset = "zcu104"
    persistent_buffer: Bytes | None = Field(default=None, description="on-chip bytes that stay from query to query")
    dynamic_buffer: Bytes | None = Field(default=None, description="on-chip bytes for weights on their way")
    streaming_buffer: Bytes | None = Field(default=None, description="on-chip bytes for an activation map")
    bandwidth: Annotated[Bandwidth, Field(gt=0)] = Field(
        default=4e9, description="of off-chip memory as a layer sees it, which is less than a board's nominal figure"
    )
    clock: Annotated[Frequency, Field(gt=0)] | None = Field(default=None, description="of the array")
    rows: Annotated[int, Field(ge=1, le=4096)] | None = Field(default=None, description="of the array")
    columns: Annotated[int, Field(ge=1, le=4096)] | None = Field(default=None, description="of the array")
    precision: PrecisionSpec = PrecisionSpec()
    overlapped: bool = Field(default=False, description="a systolic array's folds follow each other without a gap")
    energy: EnergySpec = EnergySpec()
    sizes: Annotated[tuple[Bytes, ...], Field(max_length=64)] = Field(
        default=SIZES, description="persistent buffers to sweep"
    )
    bandwidths: Annotated[tuple[Annotated[Bandwidth, Field(gt=0)], ...], Field(max_length=16)] = Field(
        default=BANDWIDTHS, description="bandwidths to sweep"
    )


class QueriesSpec(Model):
    """The stream of queries, each with an accuracy and a latency as targets, and what the scheduler does."""

    path: str | None = Field(
        default=None, description="a CSV with the targets of each query, accuracy in % and latency_ms; else drawn"
    )
    count: Annotated[int, Field(ge=1, le=100_000_000)] = 10_000
    pattern: Literal["random", "bursty"] = Field(
        default="random", description="a new target for each query, or one that is kept for a while"
    )
    hold: Annotated[float, Field(ge=1, le=1e6)] = Field(default=20.0, description="queries of a burst, on average")
    policy: Literal["strict-accuracy", "strict-latency"] = Field(
        default="strict-accuracy", description="which of a query's targets the scheduler goes by"
    )
    keep: Literal["fixed", "avgnet", "least-latency"] = Field(
        default="fixed", description="the core; or chosen anew by the nets of late, by distance or by latency"
    )
    every: Annotated[int, Field(ge=1, le=1_000_000)] = Field(default=16, description="queries between two choices")
    batch: Annotated[int, Field(ge=2, le=4096)] = Field(default=8, description="queries of one net sent together")
    deadline: Annotated[Duration, Field(gt=0)] | None = Field(
        default=None, description="nets that take longer are left out"
    )


class DataSpec(Model):
    """Labelled examples."""

    source: Literal["digits", "mitbih", "file"]
    path: str | None = Field(default=None, description="beats.npz of MIT-BIH; an NPZ with x and y, or a CSV")
    target: str = Field(default="target", description="the column of a CSV that is predicted")
    channels: Literal["first", "last", "none"] | None = Field(
        default=None, description="which axis of an NPZ's x they are, after the rows; asked for where it cannot be told"
    )
    group: str | None = Field(default=None, description="array or column that says whose a row is, of a file")
    split: Literal["random", "inter-patient", "given"] = Field(
        default="random",
        description="of rows; by record or group, none on both sides; or as a file's split says (1 train, 2 test)",
    )
    test: Annotated[Fraction, Field(gt=0, lt=1)] = Field(default=0.4, description="share of each class to test on")


class StageSpec(Model):
    """A stage of blocks of equal width; each but the first halves the map, but not a transformer's tokens."""

    width: Annotated[int, Field(ge=1, le=4096)] = Field(
        description="channels of the largest net; of a transformer, units of its feed-forward layers"
    )


class AttentionSpec(Model):
    """What every member of a transformer has whole: tokens, and the attention that mixes them."""

    patch: Annotated[int, Field(ge=1, le=1024)] = Field(default=2, description="edge of the input's part of a token")
    width: Annotated[int, Field(ge=1, le=4096)] = Field(default=32, description="numbers of a token")
    heads: Annotated[int, Field(ge=1, le=256)] = Field(default=4, description="a divisor of the width")


class StemSpec(Model):
    """The first convolution."""

    kernel: Annotated[int, Field(ge=1, le=31)] = 3
    stride: Annotated[int, Field(ge=1, le=8)] = 1


Expand = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0.03125, le=1)]
Depth = Annotated[int, Field(ge=1, le=64)]
Edge = Annotated[int, Field(ge=1, le=15)]


class SearchSpec(Model):
    """How members of a large space are found: some are measured, a predictor learns from them, evolution asks it."""

    above: Annotated[int, Field(ge=2, le=4096)] = Field(
        default=64, description="nets from which on a space is searched"
    )
    measured: Annotated[int, Field(ge=10, le=10_000)] = Field(default=100, description="nets, for the predictor")
    held: Annotated[Fraction, Field(gt=0, lt=1)] = Field(
        default=0.15, description="of the training rows, to measure on"
    )
    points: Annotated[int, Field(ge=2, le=64)] = Field(default=8, description="limits of work, a member for each")
    population: Annotated[int, Field(ge=4, le=10_000)] = 100
    generations: Annotated[int, Field(ge=1, le=10_000)] = 30


class SpaceSpec(Model):
    """What the members of the family may differ in."""

    form: Literal["conv1d", "conv2d", "mlp", "transformer"] = Field(
        default="conv2d", description="residual blocks of this form"
    )
    stages: Annotated[tuple[StageSpec, ...], Field(min_length=1, max_length=16)]
    stem: StemSpec = StemSpec()
    attention: AttentionSpec = AttentionSpec()
    expand: Annotated[tuple[Expand, ...], Field(min_length=1, max_length=64)] = Field(
        default=(1.0,), description="shares of the channels, or of a transformer's feed-forward units"
    )
    depth: Annotated[tuple[Depth, ...], Field(min_length=1, max_length=64)] = Field(
        default=(2,), description="blocks of every stage"
    )
    kernel: Annotated[tuple[Edge, ...], Field(min_length=1, max_length=64)] = Field(
        default=(3,), description="edges of the kernel, odd"
    )
    resolution: Annotated[tuple[Share, ...], Field(min_length=1, max_length=8)] = Field(
        default=(1.0,), description="shares of the input's edges, each one over a whole number"
    )
    scope: Literal["net", "stage"] = Field(
        default="net", description="an entry of the lists holds for the whole net, or every stage takes its own"
    )
    search: SearchSpec = SearchSpec()
    coupling: Literal["compound", "independent"] = Field(
        default="compound", description="the lists go together entry by entry, or every combination"
    )


class TrainingSpec(Model):
    """How the family is trained; the defaults are those that closed the gap to nets trained alone."""

    epochs: Annotated[int, Field(ge=1, le=10_000)] = 20
    rule: Literal["all", "sandwich", "progressive"] = Field(
        default="all",
        description="every subnet in every step; largest, smallest and some at random; or the largest for the epochs, "
        "then kernel, depth and width opened one after the other (OFA)",
    )
    samples: Annotated[int, Field(ge=1, le=64)] = Field(default=2, description="at random, by the sandwich rule")
    distill: Fraction = Field(default=0.0, description="share of the loss that follows the largest net's answer")
    delay: Annotated[int, Field(ge=0, le=10_000)] = Field(default=0, description="epochs of the largest net alone")
    sort: bool = Field(
        default=False, description="order the channels by importance before narrow nets join (delay or progressive)"
    )
    batch: Annotated[int, Field(ge=2, le=65_536)] = 256
    rate: Annotated[float, Field(gt=0, le=100)] = Field(default=0.1, description="learning rate after warm-up")
    warmup: Annotated[int, Field(ge=0, le=1000)] = Field(default=2, description="epochs")
    decay: Annotated[float, Field(ge=0, le=1)] = Field(default=1e-4, description="weight decay")
    clip: Annotated[float, Field(gt=0)] = Field(default=5.0, description="largest norm of a step's gradient")
    smoothing: Fraction = Field(default=0.1, description="of the labels")
    noise: Annotated[float, Field(ge=0, le=10)] = Field(default=0.0, description="deviation of noise on the input")
    shift: Annotated[int, Field(ge=0, le=64)] = Field(
        default=0, description="places by which inputs are moved, at most"
    )
    calibrate: Annotated[int, Field(ge=16, le=1_000_000)] = Field(default=4096, description="examples for the norms")
    alone: bool = Field(default=True, description="train smallest, middle and largest alone too, to compare")
    threads: Annotated[int, Field(ge=1, le=256)] = 1


class ServingSpec(Model):
    """Answers with a deadline."""

    slo: Annotated[Duration, Field(gt=0)] = Field(description="an answer that takes longer is late")
    policy: Literal["steady", "fitted", "slackfit"] = Field(
        default="steady",
        description="the most accurate net that keeps up with the rate; or that answers all that wait in time; "
        "or SuperServe's buckets",
    )
    on: Literal["cpu", "accelerator"] = Field(
        default="cpu",
        description="whose latencies plan --replay goes by: measured in training, or of the simulated chip",
    )
    load: Annotated[Percent, Field(gt=0, le=100)] | None = Field(
        default=None,
        description="the rate of a replayed trace is multiplied so that its busiest ten slo ask this "
        "share of what the quickest net can answer; by default it is played as it is",
    )
    attainment: Fraction = Field(default=0.99, description="share of requests that must be in time")
    escalate: Annotated[Fraction, Field(gt=0)] | None = Field(
        default=None, description="confidence below which a small net's answer is asked again of the most accurate net"
    )
    guard: dict[str, Fraction] = Field(
        default={},
        description="least sensitivity by class; nets that are below it never answer",
    )


class SupernetSpec(Spec):
    """One set of weights, many models: which one answers, and what switching costs."""

    kind: Literal["supernet"]
    family: Literal["ofa-resnet50", "ofa-mobilenetv3"] | None = Field(
        default=None, description="a family of the papers, by its layers only"
    )
    layers: str | None = Field(
        default=None, description="a CSV with the layers of nets of your own, for the accelerator only"
    )
    data: DataSpec | None = None
    space: SpaceSpec | None = None
    training: TrainingSpec = TrainingSpec()
    serving: ServingSpec | None = None
    accelerator: AcceleratorSpec | None = None
    queries: QueriesSpec = QueriesSpec()

    @property
    def form(self) -> str:
        """The form of the nets that are trained; of an mlp each number of an input is a channel of its own."""
        return self.space.form if self.space else ""

    def problems(self) -> Iterable[Problem]:
        """Say what does not fit together."""
        yield from _family_problems(self)
        if self.space is not None:
            yield from _space_problems(self.space)
            yield from _attention_problems(self.space, self.data)
            yield from _data_problems(self.data, self.space)
            yield from _training_problems(self.training, self.space)
            yield from _count_problems(self.space)
        yield from _queries_problems(self.queries)
        if self.accelerator is not None:
            yield from _accelerator_problems(self.accelerator)


def _family_problems(spec: SupernetSpec) -> Iterable[Problem]:
    told = [key for key in ("family", "layers", "space") if getattr(spec, key) is not None]
    if not told:
        hint = "write family: ofa-resnet50, layers: nets.csv, or a space to train"
        yield Problem(("family",), "there is no family", hint=hint)
    if told == ["family", "space"]:
        yield Problem(("family",), "a family of the papers has its own space", hint="leave family or space out")
    elif len(told) > 1:
        hint = f"leave {' or '.join(key for key in told if key != 'layers')} out"
        yield Problem(("layers",), "a table of layers is a family of its own", hint=hint)


def _space_problems(space: SpaceSpec) -> Iterable[Problem]:
    if any(edge % 2 == 0 for edge in (*space.kernel, space.stem.kernel)):
        yield Problem(("space", "kernel"), "a kernel needs a centre, so its edge is odd")
    if any(abs(1 / share - round(1 / share)) > 1e-6 for share in space.resolution):
        hint = "1, 0.5, 0.25 or another that is one over a whole number"
        yield Problem(("space", "resolution"), "neighbours are averaged, so no part of one is left over", hint=hint)
    if space.form == "mlp" and space.resolution != (1.0,):
        yield Problem(("space", "resolution"), "columns have no neighbours to average", hint="leave it out")
    coupled = (space.expand, space.depth, space.kernel, *((space.resolution,) if space.scope == "net" else ()))
    lengths = {len(each) for each in coupled} - {1}
    if space.coupling == "compound" and len(lengths) > 1:
        hint = "equally long lists, or coupling: independent"
        yield Problem(("space", "coupling"), "the lists do not go together entry by entry", hint=hint)


def _attention_problems(space: SpaceSpec, data: DataSpec | None) -> Iterable[Problem]:
    given, form = space.attention, space.form
    if form != "transformer":
        # a run's own spec names every key, so that only what differs from the default counts
        if given != AttentionSpec():
            yield Problem(("space", "attention"), f"{form} has no attention", hint="form: transformer, or leave it out")
        return
    for key in ("kernel", "stem"):
        if getattr(space, key) == SpaceSpec.model_fields[key].default:
            continue
        yield Problem(("space", key), f"a transformer has no {key}", hint="leave it out; see attention.patch")
    if given.width % given.heads:
        hint = f"heads: {math.gcd(given.width, given.heads)}, or another divisor of {given.width}"
        yield Problem(("space", "attention", "heads"), "heads share the width in equal parts", hint=hint)
    edge = EDGES.get(data.source if data else "", 0)
    if 0 < edge * min(space.resolution) < given.patch:
        hint = f"at most {max(1, int(edge * min(space.resolution)))}"
        yield Problem(("space", "attention", "patch"), "larger than the smallest input", hint=hint)


def _count_problems(given: SpaceSpec) -> Iterable[Problem]:
    from unfold_supernet.networks.space import count

    if count(given) > MOST:
        hint = f"coarser lists, coupling: compound, or scope: net; at most {MOST:,}"
        yield Problem(("space",), f"a space of {count(given):,} nets", hint=hint)


def _training_problems(training: TrainingSpec, space: SpaceSpec) -> Iterable[Problem]:
    if training.rule == "progressive" and space.coupling == "compound":
        hint = "coupling: independent, or rule: all"
        yield Problem(("training", "rule"), "progressive shrinking opens one list after the other", hint=hint)
    if training.sort and training.rule != "progressive" and not training.delay:
        yield Problem(("training", "sort"), "narrow nets are there from the first step", hint="write a delay")


def _data_problems(data: DataSpec | None, space: SpaceSpec) -> Iterable[Problem]:
    if data is None:
        yield Problem(("data",), "a space needs data to train on", hint="write data: {source: digits}")
        return
    if data.source != "digits" and data.path is None:
        yield Problem(("data",), "the file is not named", hint="write path: data/beats.npz")
    yield from _split_problems(data)
    wanted = {"digits": "conv2d", "mitbih": "conv1d"}.get(data.source, space.form)
    if space.form not in (wanted, "transformer"):
        yield Problem(("space", "form"), f"{data.source} are for {wanted} or transformer")


def _split_problems(data: DataSpec) -> Iterable[Problem]:
    own, apart = data.source == "file", data.split == "inter-patient"
    if own and apart and data.group is None:
        yield Problem(("data", "split"), "nothing says whose a row is", hint="write group: patient, an array or column")
    if data.group is not None and not (own and apart):
        hint = "with source: file and split: inter-patient, or leave it out"
        yield Problem(("data", "group"), "rows of a group are not kept apart", hint=hint)
    if (data.source == "digits" and data.split != "random") or (data.source == "mitbih" and data.split == "given"):
        hint = "random" if data.source == "digits" else "inter-patient"
        yield Problem(("data", "split"), f"{data.source} cannot be split so", hint=f"split: {hint}")


def _queries_problems(given: QueriesSpec) -> Iterable[Problem]:
    for key in ("count", "pattern", "hold"):
        if given.path is not None and getattr(given, key) != QueriesSpec.model_fields[key].default:
            yield Problem(("queries", key), "a file has its own queries", hint="leave it or path out")


def _accelerator_problems(given: AcceleratorSpec) -> Iterable[Problem]:
    if given.dynamic_buffer is not None and given.dynamic_buffer < 16 * KIB:
        yield Problem(("accelerator", "dynamic_buffer"), "a tile of weights has 16 KiB", hint='write "576 KiB"')
    if any(size > 1 << 40 for size in (*given.sizes, given.persistent_buffer or 0)):
        yield Problem(("accelerator",), "no chip has a buffer of 1 TiB", hint='write persistent_buffer: "1728 KiB"')
