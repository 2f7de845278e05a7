"""Machine code for the few loops that need it, kept on disk so that the second start is quick."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

F = TypeVar("F", bound=Callable[..., object])


def compiled(function: F) -> F:
    """Return ``function`` compiled at its first call; it may call compiled functions of its own file only.

    The machine code is kept beside the module (or in the user's cache folder) and is made again when the file or the
    processor changes; where nothing can be written it is made in memory.
    """
    import numba

    try:
        return cast("F", numba.njit(cache=True, nogil=True)(function))
    except RuntimeError:
        return cast("F", numba.njit(nogil=True)(function))
