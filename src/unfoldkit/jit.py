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

    # nobody calls it from C
    options: dict[str, Any] = {"nogil": True, "no_cfunc_wrapper": True}
    try:
        return cast("F", _alike(numba.njit(cache=True, **options)(function)))
    except RuntimeError:
        return cast("F", _alike(numba.njit(**options)(function)))


def _alike(function: Any) -> Any:
    """Let compiled callers share one version, whichever constants and widths of integers they call it with.

    Each further one costs about a second at the first start.
    """
    ask = getattr(function, "get_call_template", None)
    if ask is not None:
        function.get_call_template = lambda args, kws: ask(
            tuple(_wide(kind) for kind in args), {name: _wide(kind) for name, kind in kws.items()}
        )
    return function


def _wide(kind: Any) -> Any:
    from numba.core import types

    known: Any = types
    plain = known.unliteral(kind)
    return known.int64 if isinstance(plain, known.Integer) and (plain.signed or plain.bitwidth < 64) else plain


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
    # other compiled functions may have asked for code of their own: with integers of another width
    code = getattr(function, "overloads", {})
    types = tuple(function.typeof_pyval(arg) for arg in args) if code else ()
    return [code[types].entry_point] if types in code else []
