"""Columns of rates, as dashboards export them: the period that a name states, and cells with their unit."""

from __future__ import annotations

import math
import re

_SHORT_NAME = re.compile(r"[rqht]p([smh])")
_LONG_NAME = re.compile(
    r"(?:(?:http|total|mean|avg|average)_)?(?:requests?|reqs?|queries|calls|invocations|arrivals|hits|messages|ops)"
    r"(?:_per_|_?/_?|_p)(s|secs?|seconds?|m|mins?|minutes?|h|hrs?|hours?)"
)
_RATE_NAME = re.compile(r"(?:(?:arrival|request|query)_)?rate|.*\bi?rate\(.*")
_SEPARATORS = re.compile(r"[\s_-]+")
_VALUE = re.compile(r"(\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)\s*((?:reqs?|requests|queries|ops)?/s|[rq]ps)?")
_PERIODS_S = {"s": 1.0, "m": 60.0, "h": 3600.0}


def rate_period_s(name: str) -> float | None:
    """Return the period in s that a column of rates names: 1 for ``rps``, 60 for ``requests/min``.

    ``rate(...)`` of Prometheus is per second. ``None`` if the name is not that of a rate.
    """
    plain = _SEPARATORS.sub("_", name.strip().lower())
    if match := _SHORT_NAME.fullmatch(plain) or _LONG_NAME.fullmatch(plain):
        return _PERIODS_S[match[1][0]]
    return 1.0 if _RATE_NAME.fullmatch(plain) else None


def parse_rate(text: str) -> float | None:
    """Parse a rate, with or without its unit (``10.5 req/s``); ``None`` if the text is not a finite rate."""
    match = _VALUE.fullmatch(text.strip())
    number = float(match[1]) if match else math.inf
    return number if math.isfinite(number) else None


def has_rate_unit(text: str) -> bool:
    """Whether a cell states by its unit that it is a rate."""
    match = _VALUE.fullmatch(text.strip())
    return match is not None and match[2] is not None
