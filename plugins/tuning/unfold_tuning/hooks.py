"""What this plugin offers; imported to list the kinds, so it must stay light."""

from __future__ import annotations

from collections.abc import Iterable

from unfoldkit.api import Check, Kind, hookimpl


@hookimpl
def unfold_kinds() -> Iterable[Kind]:
    """Offer the kind ``tuning``."""
    yield Kind(
        name="tuning",
        summary="sizes the cluster of a tuning job stage by stage to meet a deadline cheaply",
        spec="unfold_tuning.schema.tuning:TuningSpec",
        profile="unfold_tuning.verbs.profile:profile",
        train="unfold_tuning.verbs.train:train",
        plan="unfold_tuning.verbs.plan:plan",
        examples="unfold_tuning:examples",
        extra="tuning",
        carries=True,
        selects_node=True,
        runs_on="cloud.provider",
        opens="unfold_tuning.verbs.check_inputs:check_inputs",
    )


@hookimpl
def unfold_checks() -> Iterable[Check]:
    """Offer health checks for ``unfold doctor``: instances and clusters that a run has left behind."""
    yield Check(
        name="rented", summary="no instance is left running", action="unfold_tuning.cluster.orphans:check_orphans"
    )
    yield Check(
        name="skypilot",
        summary="no cluster of SkyPilot is left running",
        action="unfold_tuning.cluster.orphans:check_clusters",
    )
