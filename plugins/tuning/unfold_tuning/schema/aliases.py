"""Searches of other tools, and how they are spelt there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic_core import PydanticCustomError

NO_BARRIERS = "has no barriers at which a known number of trials goes on, so no stages to plan"
ALL_STAY = "keeps all trials and changes them while they run, so that there are no stages to plan"
DRAWN_LATE = "draws trials by the results of others; here they are drawn at random before the first one runs"
ALL_POINTS = "runs every point of a grid; here trials are drawn at random, so that points may come twice or not at all"
ELSEWHERE = {
    "asha": (NO_BARRIERS, "successive-halving or hyperband"),
    "async-hyperband": (NO_BARRIERS, "hyperband"),
    "grid": (ALL_POINTS, "random, with as many trials as the grid has points"),
    "grid-search": (ALL_POINTS, "random, with as many trials as the grid has points"),
    "median-stopping": (NO_BARRIERS, "successive-halving"),
    "pbt": (ALL_STAY, "random or successive-halving"),
    "bohb": (DRAWN_LATE, "hyperband"),
    "bayesian": (DRAWN_LATE, "random or successive-halving"),
    "tpe": (DRAWN_LATE, "random or successive-halving"),
}
"""Searches of other tools: why they are not here, and what is."""
SPELT = {"sha": "successive-halving", "halving": "successive-halving", "random-search": "random"}


def known(search: Any) -> Any:
    """Say of searches that other tools have why they are not here, and what to write."""
    if not isinstance(search, Mapping):
        return search
    name = str(search.get("algorithm", ""))
    word = name.lower().replace("_", "-").replace(" ", "-")
    if word in ELSEWHERE:
        why, instead = ELSEWHERE[word]
        raise PydanticCustomError("search", f'"{{value}}" {why}', {"value": name, "hint": f"write {instead}"})
    meant = SPELT.get(word, word)
    if meant != name and meant in ("successive-halving", "hyperband", "random", "custom"):
        raise PydanticCustomError("search", 'no algorithm "{value}"', {"value": name, "hint": f"write {meant}"})
    # what was in Python's hands is read strictly from here on: a list is no tuple
    return {key: tuple(item) if isinstance(item, list) else item for key, item in search.items()}
