"""Compile loops with Numba and cache their machine code on disk, so that the second start is fast."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar, cast, get_type_hints

F = TypeVar("F", bound=Callable[..., object])


def compiled(function: F) -> F:
    """Compile ``function`` at its first call; it may call compiled functions of its own file only.

    The machine code is cached beside the module, or in the user's cache folder, and is built again when the file or the
    processor changes. Where no folder is writable, or has no room, it stays in memory.
    """
    import numba

    # without a wrapper for callers from C, which the project does not have
    options: dict[str, Any] = {"nogil": True, "no_cfunc_wrapper": True}
    try:
        return cast("F", _share_versions(_survive_cache(numba.njit(cache=True, **options)(function))))
    except RuntimeError:
        return cast("F", _share_versions(numba.njit(**options)(function)))


def inlined(function: F) -> F:
    """Compile ``function`` into each compiled function of its own file that calls it.

    LLVM leaves a call that passes arrays as it is, and a kernel that makes one for each item takes twice the time.
    """
    import numba

    return cast("F", numba.njit(inline="always", nogil=True)(function))


def without_dispatch(function: F) -> F:
    """Return a compiled function that skips Numba's dispatch after the first call.

    Numba inspects the type of every argument at every call, which takes 6 µs for a tuple of 33 arrays. Callers must
    keep types and array layouts constant: other arguments would be read as what they are not.
    """
    entry_points: list[Callable[..., Any]] = []

    def call(*args: Any) -> Any:
        if entry_points:
            return entry_points[0](*args)
        result = function(*args)
        entry_points.extend(_find_entry_point(function, args))
        return result

    return cast("F", call)


def compile_ahead(functions: Iterable[object], samples: Mapping[object, object]) -> None:
    """Compile functions, or load them from the cache, so that the first call of each need not.

    Args:
        functions: Compiled functions; those without a sample of every parameter are left out.
        samples: A value of each parameter, by its name or, for all others, by its annotated type.
    """
    for function in functions:
        dispatcher: Any = function
        if not hasattr(dispatcher, "py_func"):
            continue
        hints = get_type_hints(dispatcher.py_func)
        hints.pop("return", None)
        keys = [name if name in samples else kind for name, kind in hints.items()]
        if all(key in samples for key in keys):
            dispatcher.compile(tuple(dispatcher.typeof_pyval(samples[key]) for key in keys))


def _survive_cache(function: Any) -> Any:
    """Let neither a damaged cache nor a full disk stop a call: machine code is compiled again, or is not cached.

    Numba does not sync its files, so that some may be empty after a machine has lost power.
    """
    cache = getattr(function, "_cache", None)
    if cache is None:
        return function
    load, save = cache.load_overload, cache.save_overload

    def load_or_forget(*args: Any) -> Any:
        try:
            return load(*args)
        except Exception:  # noqa: BLE001 - unpickling a damaged file may raise any
            with suppress(OSError):
                cache.flush()
            return None

    def save_or_forget(*args: Any) -> None:
        with suppress(OSError):
            save(*args)

    cache.load_overload, cache.save_overload = load_or_forget, save_or_forget
    return function


def _share_versions(function: Any) -> Any:
    """Let compiled callers share one version for constants and integers of any width.

    Every further version costs about a second at the first start.
    """
    get_template = getattr(function, "get_call_template", None)
    if get_template is not None:
        function.get_call_template = lambda args, kws: get_template(
            tuple(_widen(kind) for kind in args), {name: _widen(kind) for name, kind in kws.items()}
        )
    return function


def _widen(kind: Any) -> Any:
    from numba.core import types as numba_types

    types: Any = numba_types
    plain = types.unliteral(kind)
    return types.int64 if isinstance(plain, types.Integer) and (plain.signed or plain.bitwidth < 64) else plain


def _find_entry_point(function: Any, args: Sequence[object]) -> list[Callable[..., Any]]:
    # another compiled function may have caused a version for integers of another width: look for the exact types
    versions = getattr(function, "overloads", {})
    types = tuple(function.typeof_pyval(arg) for arg in args) if versions else ()
    return [versions[types].entry_point] if types in versions else []
