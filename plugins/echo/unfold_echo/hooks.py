"""What this plugin offers. Keep it light: it is imported to list the kinds."""

from __future__ import annotations

from collections.abc import Iterable

from unfoldkit.api import Check, Kind, hookimpl


@hookimpl
def unfold_kinds() -> Iterable[Kind]:
    """Offer the kind ``echo``."""
    yield Kind(
        name="echo",
        summary="says a message a number of times, if the budget allows",
        spec="unfold_echo.spec:EchoSpec",
        profile="unfold_echo.verbs:profile",
        train="unfold_echo.verbs:train",
        plan="unfold_echo.verbs:plan",
        serve="unfold_echo.verbs:serve",
        examples="unfold_echo:examples",
    )


@hookimpl
def unfold_checks() -> Iterable[Check]:
    """Offer a health check for ``unfold doctor``."""
    yield Check(name="echo", summary="a message comes back", action="unfold_echo.verbs:check_message")
