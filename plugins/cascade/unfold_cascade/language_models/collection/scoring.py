"""Decide whether an answer is correct: by its text, by a number, choice or pattern in it, or by a function."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from unfoldkit.api import user_error

Score = Callable[[str, str], bool]
"""Takes an answer and the expected one."""
_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_CHOICE = re.compile(r"(?<![A-Za-z])([A-Za-z])(?![A-Za-z'])")


def is_exact(answer: str, expected: str) -> bool:
    """Whether both texts are equal, but for case and white space."""
    return " ".join(answer.split()).casefold() == " ".join(expected.split()).casefold()


def is_same_choice(answer: str, expected: str) -> bool:
    """Whether the first letter that stands alone in the answer is the expected one, as in ``(B) because``."""
    match = _CHOICE.search(answer)
    return match is not None and match[1].upper() == expected.strip().upper()[:1]


def is_same_number(answer: str, expected: str, tolerance: float) -> bool:
    """Whether the last number in the answer equals the last number expected, up to a relative difference."""
    numbers = [_find_last_number(text) for text in (answer, expected)]
    if numbers[0] is None or numbers[1] is None:
        return False
    return math.isclose(numbers[0], numbers[1], rel_tol=tolerance, abs_tol=1e-12)


def build_pattern_score(pattern: str) -> Score:
    """Build a score which compares what a pattern finds in the answer: its first group, or the whole match.

    Raises:
        UnfoldError: The pattern is no regular expression.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise user_error(f"not a regular expression: {error}", key="collect.score.pattern") from error

    def matches(answer: str, expected: str) -> bool:
        match = compiled.search(answer)
        return match is not None and is_exact(match[1] if compiled.groups and match[1] else match[0], expected)

    return matches


def load_function(reference: str, *, allow_code: bool) -> Score:
    """Load a user's function of (answer, expected).

    Raises:
        UnfoldError: Code is not allowed, or there is no such function.
    """
    if not allow_code:
        raise user_error("a function runs code of yours", key="collect.score.function", hint="add --allow-code")
    import pkgutil

    try:
        function = pkgutil.resolve_name(reference)
    except (ImportError, AttributeError, ValueError) as error:
        raise user_error(f"no such function: {reference}: {error}", key="collect.score.function") from error
    return lambda answer, expected: bool(function(answer, expected))


def _find_last_number(text: str) -> float | None:
    matches = _NUMBER.findall(text)
    return float(matches[-1].replace(",", "")) if matches else None
