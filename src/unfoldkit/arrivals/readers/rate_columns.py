"""Columns of rates, as monitoring writes them: how many arrive in a second, by interval."""

from __future__ import annotations

import math
import re

_SECOND, _MINUTE, _HOUR = 1.0, 60.0, 3600.0
_SHORT = re.compile(r"[rqht]p([smh])")
_LONG = re.compile(
    r"(?:(?:http|total|mean|avg|average)_)?(?:requests?|reqs?|queries|calls|invocations|arrivals|hits|messages|ops)"
    r"(?:_per_|_?/_?|_p)(s|secs?|seconds?|m|mins?|minutes?|h|hrs?|hours?)"
)
_RATE = re.compile(r"(?:(?:arrival|request|query)_)?rate|.*\bi?rate\(.*")
_APART = re.compile(r"[\s_-]+")
_VALUE = re.compile(r"(\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)\s*((?:reqs?|requests|queries|ops)?/s|[rq]ps)?")


def per(name: str) -> float | None:
    """Return in how many s so many arrive as a column says, by its name: 1 for ``rps``, 60 for ``requests/min``.

    ``None`` if the name is not that of a rate. ``rate(...)`` of Prometheus is one a second.
    """
    plain = _APART.sub("_", name.strip().lower())
    if found := _SHORT.fullmatch(plain) or _LONG.fullmatch(plain):
        return {"s": _SECOND, "m": _MINUTE, "h": _HOUR}[found[1][0]]
    return _SECOND if _RATE.fullmatch(plain) else None


def value(text: str) -> float | None:
    """Return the number of a cell, which may have its unit behind it (``10.5 req/s``); ``None`` if it is none."""
    found = _VALUE.fullmatch(text.strip())
    number = float(found[1]) if found else math.inf
    return number if math.isfinite(number) else None


def is_paced(text: str) -> bool:
    """Return whether a cell says itself that it is a rate, by its unit."""
    found = _VALUE.fullmatch(text.strip())
    return found is not None and found[2] is not None
