"""Searches that a spec may name, and why the search algorithms of other tools cannot be planned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic_core import PydanticCustomError

from unfoldkit.api import Model, Problem

Count = Annotated[int, Field(ge=1, le=1_000_000)]
Trials = Annotated[int, Field(ge=1, le=20_000)]
Eta = Annotated[int, Field(ge=2, le=100)]
MAX_HYPERBAND_ITERS = 20_000
"""Hyperband starts about as many trials as it has iterations."""
NO_BARRIERS = "has no barriers after which a known number of trials continues, so no stages to plan"
POPULATION = "keeps all trials and changes them while they run, so it has no stages to plan"
SEQUENTIAL = "draws trials from the results of others; here trials are drawn at random before the first one runs"
GRID = "runs every point of a grid; here trials are drawn at random, so points may repeat or be missed"
UNSUPPORTED = {
    "asha": (NO_BARRIERS, "successive-halving or hyperband"),
    "async-hyperband": (NO_BARRIERS, "hyperband"),
    "grid": (GRID, "random, with as many trials as the grid has points"),
    "grid-search": (GRID, "random, with as many trials as the grid has points"),
    "median-stopping": (NO_BARRIERS, "successive-halving"),
    "pbt": (POPULATION, "random or successive-halving"),
    "bohb": (SEQUENTIAL, "hyperband"),
    "bayesian": (SEQUENTIAL, "random or successive-halving"),
    "tpe": (SEQUENTIAL, "random or successive-halving"),
}
"""Algorithms of other tools: why they are not supported, and which algorithm to use."""
SYNONYMS = {"sha": "successive-halving", "halving": "successive-halving", "random-search": "random"}
SUPPORTED = ("successive-halving", "hyperband", "random", "custom")


class Halving(Model):
    """Successive halving: the best 1/eta of the trials continue after each stage."""

    algorithm: Literal["successive-halving"]
    trials: Trials = Field(description="trials in the first stage")
    min_iters: Count = Field(description="iterations of every trial in the first stage")
    max_iters: Count = Field(description="total iterations of the last trial")
    eta: Eta = Field(default=3, description="the best 1/eta of the trials continue")


class Hyperband(Model):
    """Hyperband: successive halving from several starting points."""

    algorithm: Literal["hyperband"]
    max_iters: Count = Field(description="maximum iterations of a trial")
    eta: Eta = Field(default=3, description="the best 1/eta of the trials continue")
    brackets: Literal["sequence", "parallel"] = Field(
        default="sequence", description="run brackets one after another, or together"
    )


class RandomSearch(Model):
    """Random search: every trial runs to the end, in one stage."""

    algorithm: Literal["random"]
    trials: Trials = Field(description="trials of the search")
    iters: Count = Field(description="iterations of each trial")


class Rung(Model):
    """One stage of a custom search."""

    trials: Trials = Field(description="trials of the stage")
    iters: Count = Field(description="further iterations of each trial")


class Custom(Model):
    """A list of stages; where the number of trials grows, new trials start."""

    algorithm: Literal["custom"]
    stages: Annotated[tuple[Rung, ...], Field(min_length=1, max_length=64)] = Field(description="the stages, in order")


Search = Halving | Hyperband | RandomSearch | Custom


def check_search(search: Search) -> Iterable[Problem]:
    """Yield contradictions within a search."""
    if isinstance(search, Halving) and search.min_iters > search.max_iters:
        yield Problem(("search", "min_iters"), f"{search.min_iters} is more than max_iters {search.max_iters}")
    if isinstance(search, Hyperband) and search.max_iters > MAX_HYPERBAND_ITERS:
        yield Problem(
            ("search", "max_iters"),
            f"at most {MAX_HYPERBAND_ITERS:,}: Hyperband starts about as many trials as max_iters",
        )


def translate_search(search: Any) -> Any:
    """Reject algorithm names of other tools with the reason and the name to write.

    Args:
        search: The raw value of ``search``; whatever is not a mapping is left to pydantic.

    Returns:
        The mapping, its lists as tuples, since the models validate strictly from here on.

    Raises:
        PydanticCustomError: The algorithm is unsupported, or spelt differently here.
    """
    if not isinstance(search, Mapping):
        return search
    name = str(search.get("algorithm", ""))
    normalized = name.lower().replace("_", "-").replace(" ", "-")
    if normalized in UNSUPPORTED:
        reason, replacement = UNSUPPORTED[normalized]
        raise PydanticCustomError("search", f'"{{value}}" {reason}', {"value": name, "hint": f"write {replacement}"})
    algorithm = SYNONYMS.get(normalized, normalized)
    if algorithm != name and algorithm in SUPPORTED:
        raise PydanticCustomError("search", 'no algorithm "{value}"', {"value": name, "hint": f"write {algorithm}"})
    return {key: tuple(value) if isinstance(value, list) else value for key, value in search.items()}
