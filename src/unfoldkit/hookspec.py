"""The four hooks of a plugin. An implementation is marked by ``@hookimpl`` and may omit arguments."""

from __future__ import annotations

from collections.abc import Iterable

import pluggy

from unfoldkit.plugin_descriptors import Check, Kind, Renderer, RunFinished

PROJECT = "unfoldkit"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def unfold_kinds() -> Iterable[Kind]:  # type: ignore[empty-body]
    """Offer kinds of spec. It is called when the first spec is loaded, and must not import heavy libraries.

    Example:
        >>> from unfoldkit.api import Kind, hookimpl
        >>> @hookimpl
        ... def unfold_kinds():
        ...     yield Kind(name="foo", summary="does foo", spec="unfold_foo.spec:FooSpec", plan="unfold_foo.plan:plan")
    """


@hookspec
def unfold_checks() -> Iterable[Check]:  # type: ignore[empty-body]
    """Offer health checks for ``unfold doctor``.

    Example:
        >>> from unfoldkit.api import Check, hookimpl
        >>> @hookimpl
        ... def unfold_checks():
        ...     yield Check(name="foo", summary="foo is reachable", action="unfold_foo.checks:reachable")
    """


@hookspec
def unfold_renderers() -> Iterable[Renderer]:  # type: ignore[empty-body]
    """Offer output formats for ``--format`` and ``--out``.

    Example:
        >>> from unfoldkit.api import Renderer, hookimpl
        >>> @hookimpl
        ... def unfold_renderers():
        ...     yield Renderer(name="csv", summary="tables as CSV", render="unfold_foo.csv:render", suffixes=(".csv",))
    """


@hookspec
def unfold_run_finished(event: RunFinished) -> None:
    """Observe that a verb has finished. An exception here is logged and never changes the exit code.

    Example:
        >>> from unfoldkit.api import RunFinished, hookimpl
        >>> @hookimpl
        ... def unfold_run_finished(event: RunFinished) -> None:
        ...     push_metric(event.name, event.exit_code)
    """
