"""Where operator tables end: sizes a little beyond them are extrapolated and reported, distant ones are refused."""

from __future__ import annotations

from dataclasses import dataclass

from unfoldkit.api import user_error

MAX_FACTORS = {"m": 2, "requests": 2, "context": 8}
"""How far beyond a table each size may lie: table ``extrapolation`` of the benchmark engine-fidelity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableEnd:
    """The end of a table in one size.

    Attributes:
        operator: what was measured.
        size: name of the size: ``m``, ``requests`` or ``context``.
        measured: largest size in the table.
        needed: largest size that is needed.
    """

    operator: str
    size: str
    measured: int
    needed: int


def reject_distant_size(end: TableEnd, factor: int, file: str, hint: str) -> None:
    """Reject a size that lies more than a factor beyond its table.

    Raises:
        UnfoldError: it does.
    """
    if end.needed > factor * end.measured:
        message = f"{end.operator}: the table ends at {end.size} {end.measured:,}, and {end.needed:,} are needed"
        raise user_error(message, file=file, hint=hint)
