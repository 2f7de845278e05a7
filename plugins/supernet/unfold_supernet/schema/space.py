"""Section ``space``: the dimensions in which the subnets of a trained supernet differ."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field

from unfold_supernet.networks.space import count_subnets
from unfoldkit.api import Fraction, Model, Problem

MAX_SUBNETS = 300_000
"""A search visits every subnet of the space."""
KNOWN_EDGES = {"digits": 8, "mitbih": 128}
"""Input edge by data source, where it is known before the data is read."""


class StageSpec(Model):
    """A stage of blocks of equal width. Later stages halve the feature map; transformers keep their tokens."""

    width: Annotated[int, Field(ge=1, le=4096)] = Field(
        description="channels of the largest subnet; in a transformer, units of its feed-forward layers"
    )


class AttentionSpec(Model):
    """The part of a transformer that all subnets share in full: tokens and attention."""

    patch: Annotated[int, Field(ge=1, le=1024)] = Field(default=2, description="edge of the input patch of a token")
    width: Annotated[int, Field(ge=1, le=4096)] = Field(default=32, description="numbers in a token")
    heads: Annotated[int, Field(ge=1, le=256)] = Field(default=4, description="a divisor of the width")


class StemSpec(Model):
    """The first convolution."""

    kernel: Annotated[int, Field(ge=1, le=31)] = Field(default=3, description="kernel edge")
    stride: Annotated[int, Field(ge=1, le=8)] = Field(default=1, description="stride along each axis")


Expand = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0.03125, le=1)]
Depth = Annotated[int, Field(ge=1, le=64)]
Edge = Annotated[int, Field(ge=1, le=15)]


class SearchSpec(Model):
    """Search in a large space: measure a sample, fit an accuracy predictor, evolve subnets by its predictions (OFA)."""

    above: Annotated[int, Field(ge=2, le=4096)] = Field(
        default=64, description="search spaces with more subnets than this; measure all subnets of smaller ones"
    )
    measured: Annotated[int, Field(ge=10, le=10_000)] = Field(
        default=100, description="subnets to measure for the predictor"
    )
    held: Annotated[Fraction, Field(gt=0, lt=1)] = Field(
        default=0.15, description="fraction of the training rows held out for these measurements"
    )
    points: Annotated[int, Field(ge=2, le=64)] = Field(
        default=8, description="limits on MACs; the search returns a subnet for each"
    )
    population: Annotated[int, Field(ge=4, le=10_000)] = Field(
        default=100, description="subnets of a generation of the search"
    )
    generations: Annotated[int, Field(ge=1, le=10_000)] = Field(default=30, description="generations of the search")


class SpaceSpec(Model):
    """The dimensions in which subnets may differ."""

    form: Literal["conv1d", "conv2d", "mlp", "transformer"] = Field(
        default="conv2d", description="form of the residual blocks"
    )
    stages: Annotated[tuple[StageSpec, ...], Field(min_length=1, max_length=16)] = Field(
        description="the stages of the network, in order"
    )
    stem: StemSpec = StemSpec()
    attention: AttentionSpec = AttentionSpec()
    expand: Annotated[tuple[Expand, ...], Field(min_length=1, max_length=64)] = Field(
        default=(1.0,), description="fractions of the channels, or of a transformer's feed-forward units"
    )
    depth: Annotated[tuple[Depth, ...], Field(min_length=1, max_length=64)] = Field(
        default=(2,), description="blocks in every stage"
    )
    kernel: Annotated[tuple[Edge, ...], Field(min_length=1, max_length=64)] = Field(
        default=(3,), description="kernel edges, odd"
    )
    resolution: Annotated[tuple[Share, ...], Field(min_length=1, max_length=8)] = Field(
        default=(1.0,), description="fractions of the input's edges, each 1/n for an integer n"
    )
    scope: Literal["net", "stage"] = Field(
        default="net", description="choose entries of the lists for the whole subnet, or for each stage"
    )
    search: SearchSpec = SearchSpec()
    coupling: Literal["compound", "independent"] = Field(
        default="compound", description="combine the lists entry by entry (CompOFA), or in every combination"
    )

    @property
    def subnet_count(self) -> int:
        """Number of subnets, duplicates included."""
        kernels = 1 if self.form in ("mlp", "transformer") else len(self.kernel)
        return count_subnets(
            (len(self.expand), len(self.depth), kernels),
            len(self.resolution),
            len(self.stages),
            independent=self.coupling == "independent",
            stagewise=self.scope == "stage",
        )


def find_space_problems(space: SpaceSpec, source: str) -> Iterable[Problem]:
    """Yield contradictions within a space; ``source`` is the data source, empty if there is none."""
    yield from _find_dimension_problems(space)
    if space.form == "transformer":
        yield from _find_transformer_problems(space, source)
    elif space.attention != AttentionSpec():
        # stored specs name every key, so only values other than the default count
        message, hint = f"{space.form} has no attention", "use form: transformer, or remove attention"
        yield Problem(("space", "attention"), message, hint=hint)


def find_count_problems(space: SpaceSpec) -> Iterable[Problem]:
    """Yield an error for a space that is too large to enumerate."""
    if space.subnet_count > MAX_SUBNETS:
        hint = f"shorten the lists, or use coupling: compound or scope: net; at most {MAX_SUBNETS:,}"
        yield Problem(("space",), f"the space has {space.subnet_count:,} subnets", hint=hint)


def _find_dimension_problems(space: SpaceSpec) -> Iterable[Problem]:
    if any(edge % 2 == 0 for edge in (*space.kernel, space.stem.kernel)):
        yield Problem(("space", "kernel"), "kernel edges must be odd, so that a kernel has a centre")
    if any(abs(1 / share - round(1 / share)) > 1e-6 for share in space.resolution):
        message = "must be 1/n for an integer n, because n neighbours are averaged"
        yield Problem(("space", "resolution"), message, hint="write 1, 0.5 or 0.25")
    if space.form == "mlp" and space.resolution != (1.0,):
        yield Problem(("space", "resolution"), "columns have no neighbours to average", hint="remove resolution")
    coupled = (space.expand, space.depth, space.kernel, *((space.resolution,) if space.scope == "net" else ()))
    lengths = {len(values) for values in coupled} - {1}
    if space.coupling == "compound" and len(lengths) > 1:
        message = "compound coupling needs lists of equal length"
        yield Problem(("space", "coupling"), message, hint="equalize the lists, or use coupling: independent")


def _find_transformer_problems(space: SpaceSpec, source: str) -> Iterable[Problem]:
    for key in ("kernel", "stem"):
        if getattr(space, key) == SpaceSpec.model_fields[key].default:
            continue
        yield Problem(("space", key), f"a transformer has no {key}", hint=f"remove {key}; see attention.patch")
    attention = space.attention
    if attention.width % attention.heads:
        hint = f"heads: {math.gcd(attention.width, attention.heads)}, or another divisor of {attention.width}"
        yield Problem(("space", "attention", "heads"), "must divide the width", hint=hint)
    smallest = KNOWN_EDGES.get(source, 0) * min(space.resolution)
    if 0 < smallest < attention.patch:
        message, hint = "exceeds the smallest input", f"at most {max(1, int(smallest))}"
        yield Problem(("space", "attention", "patch"), message, hint=hint)
