"""How much less a cascade costs, also where it costs nothing."""

from __future__ import annotations

FREE = "free"


def times(base: float, own: float) -> float | None:
    """Return how many times less ``own`` is than ``base``; ``None`` where it is nothing, and so any number of times."""
    if own > 0:
        return base / own
    return None if base > 0 else 1.0


def cell(base: float, own: float) -> float | str:
    """Return the same for a table."""
    found = times(base, own)
    return FREE if found is None else found


def short(base: float, own: float) -> str:
    """Return the same in a word: ``3.5x``, or ``free``."""
    found = times(base, own)
    return FREE if found is None else f"{found:,.1f}x"


def in_words(base: float, own: float, unit: str) -> str:
    """Return the same as the beginning of a sentence."""
    found = times(base, own)
    return f"free, against {base:.4g} {unit} a case," if found is None else f"{found:.1f}x cheaper"
