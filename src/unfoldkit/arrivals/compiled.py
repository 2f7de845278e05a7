"""Machine code for the few loops that need it, kept on disk so that the second start is quick."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

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


def direct(function: F) -> F:
    """Return a compiled function as Python calls it when the types of its arguments never change.

    Numba looks at the type of every argument at every call, 6 us for a tuple of 33 arrays; here it does so at the
    first one only. Callers answer for it that types and layouts stay: others would be read as what they are not.
    """
    machine: list[Callable[..., Any]] = []

    def call(*args: Any) -> Any:
        if machine:
            return machine[0](*args)
        found = function(*args)
        machine.extend(_exact(function, args))
        return found

    return cast("F", call)


def _exact(function: Any, args: Sequence[object]) -> list[Callable[..., Any]]:
    # other compiled functions may have asked for code of their own: with a constant in the place of an argument
    code = getattr(function, "overloads", {})
    types = tuple(function.typeof_pyval(arg) for arg in args) if code else ()
    return [code[types].entry_point] if types in code else []
