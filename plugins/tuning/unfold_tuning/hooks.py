"""What this plugin offers. Keep it light: it is imported to list the kinds."""

from __future__ import annotations

from collections.abc import Iterable

from unfoldkit.api import Check, Kind, hookimpl


@hookimpl
def unfold_kinds() -> Iterable[Kind]:
    """Offer the kind ``tuning``."""
    yield Kind(
        name="tuning",
        summary="sizes the cluster of a tuning job stage by stage: on time and cheap",
        spec="unfold_tuning.spec:TuningSpec",
        profile="unfold_tuning.measure:profile",
        train="unfold_tuning.train:train",
        plan="unfold_tuning.plan:plan",
        examples="unfold_tuning:examples",
        carries=True,
        opens="unfold_tuning.opening:opened",
    )


@hookimpl
def unfold_checks() -> Iterable[Check]:
    """Offer a health check for ``unfold doctor``: instances that nobody holds any more."""
    yield Check(name="rented", summary="no instance is left running", action="unfold_tuning.orphans:left_running")
