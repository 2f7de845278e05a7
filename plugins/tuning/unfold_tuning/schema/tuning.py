"""The spec of kind ``tuning``: its parts, the placement policy, and the checks that span several parts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from unfold_tuning.schema.cloud import Cloud, check_cloud
from unfold_tuning.schema.profile import ProfileSpec, Recorded, check_profile
from unfold_tuning.schema.search import Custom, Halving, Hyperband, RandomSearch, check_search, translate_search
from unfold_tuning.schema.trainable import Trainable, check_trainable
from unfoldkit.api import Duration, Fraction, Model, Money, Problem, Spec


class GangPolicy(Model):
    """All workers of a trial start at once, or none does; the executor always does this."""

    by: Literal["trial"] = "trial"


class PackPolicy(Model):
    """Place a trial within one node if it fits, on the node that it fills best."""

    level: Literal["node"] = "node"


class SpreadPolicy(Model):
    """Place a trial on the node that runs the fewest other trials."""

    by: Literal["node"] = "node"


class PlacementPolicy(Model):
    """How trials are placed on nodes, in the vocabulary of the kind ``placement``."""

    gang: Literal["trial"] | GangPolicy = Field(
        default="trial", description="all workers of a trial start at once, always"
    )
    pack: Literal["node"] | PackPolicy | None = Field(default=None, description="fill the fullest node with room")
    spread: Literal["node"] | SpreadPolicy | None = Field(default=None, description="use the emptiest node")


class TuningSpec(Spec):
    """Sizes the cluster of a tuning job stage by stage, and runs the job."""

    kind: Literal["tuning"]
    search: Annotated[
        Annotated[Halving | Hyperband | RandomSearch | Custom, Field(discriminator="algorithm")],
        BeforeValidator(translate_search),
    ] = Field(description="how many trials run for how many iterations, stage by stage")
    trainable: Trainable | None = None
    deadline: Annotated[Duration, Field(gt=0)] | None = Field(
        default=None, description="find the cheapest plan that meets it"
    )
    budget: Annotated[Money, Field(gt=0)] | None = Field(
        default=None, description="without a deadline: find the fastest plan within it; with a deadline: a hard cap"
    )
    on_time: Fraction = Field(default=0.95, description="required probability of meeting the deadline")
    cloud: Cloud
    profile: ProfileSpec | None = None
    history: Annotated[tuple[Recorded, ...], Field(max_length=200)] = Field(
        default=(), description="earlier jobs of this kind, from which changes of pace are learnt; at least four"
    )
    placement: PlacementPolicy = Field(
        default=PlacementPolicy(), description="which node runs a trial; packed if left out"
    )
    samples: Annotated[int, Field(ge=100, le=100_000)] = Field(
        default=10_000,
        description="simulated runs of a plan; reduced automatically if so many trials would not fit into memory",
    )

    def problems(self) -> Iterable[Problem]:
        """Yield contradictions between the parts of the spec."""
        if self.deadline is None and self.budget is None:
            yield Problem(("deadline",), "neither a deadline nor a budget", hint='write deadline: "30 min"')
        if not 0.5 <= self.on_time < 1:
            yield Problem(("on_time",), "must be at least 50% and less than 100%", hint='write "95%"')
        yield from check_search(self.search)
        if self.profile is not None:
            yield from check_profile(self.profile)
        for index, job in enumerate(self.history):
            if job in self.history[:index]:
                yield Problem(("history", index), "this job is written twice", hint="keep one: it would count twice")
            if self.profile is not None and job == self.profile.recorded:
                hint = "leave it out here: it would count twice"
                yield Problem(("history", index), "this job is profile.recorded", hint=hint)
        yield from check_cloud(self.cloud)
        if self.cloud.market == "thrifty" and self.deadline is None:
            hint = "write deadline, or market: spot"
            yield Problem(
                ("cloud", "market"), "a thrifty plan needs a deadline: it waits for spot until then", hint=hint
            )
        if self.placement.pack is not None and self.placement.spread is not None:
            hint = "write pack: node; packed nodes can be released"
            yield Problem(("placement",), "pack and spread exclude each other", hint=hint)
        if self.trainable is not None:
            yield from check_trainable(self.trainable)
            yield from _check_stragglers(self.trainable, self.deadline)
            yield from _check_span(self.trainable, self.profile, self.cloud)


def _check_stragglers(trainable: Trainable, deadline: float | None) -> Iterable[Problem]:
    """Yield a rule about stragglers without a deadline."""
    if deadline is None and trainable.early_stop is not None and trainable.early_stop.stragglers:
        where = ("trainable", "early_stop", "stragglers")
        yield Problem(
            where, "without a deadline, a stage waits for every trial", hint="write deadline, or leave it out"
        )


def _check_span(trainable: Trainable, profile: ProfileSpec | None, cloud: Cloud) -> Iterable[Problem]:
    """Yield trials that would span instances without a speed-up, without instances, or without processes for it."""
    if trainable.span > cloud.limit:
        message = f"a trial may span {trainable.span} instances, but cloud.limit is {cloud.limit}"
        yield Problem(("trainable", "span"), message, hint=f"write span: {cloud.limit}")
    if trainable.span > 1 and profile is not None and not profile.across:
        hint = "write across: {8: 5.1}, or leave profile out: unfold profile measures it"
        yield Problem(("profile",), "no speed-up across instances, which trainable.span needs", hint=hint)
    if trainable.estimator is not None and profile is not None and profile.across:
        hint = "leave across out, or write function"
        yield Problem(("profile", "across"), "a trial of an estimator is one process on one instance", hint=hint)
