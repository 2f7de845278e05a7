"""What a user writes in a spec of kind ``tuning``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from unfold_tuning.schema.aliases import known
from unfoldkit.api import Bytes, Duration, Fraction, Model, Money, Percent, Price, Problem, Rate, Spec, did_you_mean

Count = Annotated[int, Field(ge=1, le=1_000_000)]
Trials = Annotated[int, Field(ge=1, le=20_000)]
METRICS = ("accuracy", "log-loss")
MOST_VARIATION = 10.0
Eta = Annotated[int, Field(ge=2, le=100)]


class Halving(Model):
    """Successive halving: the best 1/eta of the trials go on after each stage."""

    algorithm: Literal["successive-halving"]
    trials: Trials = Field(description="trials at the start")
    min_iters: Count = Field(description="iterations of every trial in the first stage")
    max_iters: Count = Field(description="iterations of the last trial in all")
    eta: Eta = 3


class Hyperband(Model):
    """Hyperband: successive halving from several starting points."""

    algorithm: Literal["hyperband"]
    max_iters: Count = Field(description="iterations of a trial at most")
    eta: Eta = 3
    brackets: Literal["sequence", "parallel"] = Field(default="sequence", description="one after another, or together")


class RandomSearch(Model):
    """Every trial runs to the end: one stage."""

    algorithm: Literal["random"]
    trials: Trials
    iters: Count


class Rung(Model):
    """A stage of a custom search."""

    trials: Trials
    iters: Count = Field(description="further iterations of each trial")


class Custom(Model):
    """Stages as they are written; where the number of trials grows, fresh ones start."""

    algorithm: Literal["custom"]
    stages: Annotated[tuple[Rung, ...], Field(min_length=1, max_length=64)]


class Log(Model):
    """Log-uniform between two bounds."""

    log: tuple[float, float]


class Uniform(Model):
    """Uniform between two bounds."""

    uniform: tuple[float, float]


class Whole(Model):
    """A whole number between two bounds, both included."""

    int_: tuple[int, int] = Field(alias="int")


class Choice(Model):
    """One of some values."""

    choice: Annotated[tuple[float | int | str | bool, ...], Field(min_length=1)]


class Trainable(Model):
    """What a trial trains: a built-in estimator on a data set, or code of your own (needs ``--allow-code``)."""

    estimator: Literal["xgboost", "sgd", "mlp", "torch-mlp"] | None = Field(
        default=None, description="XGBoost; scikit-learn's SGDClassifier or MLPClassifier; a network of torch"
    )
    function: str | None = Field(default=None, description="module:function of your own; see the docs for its form")
    data: str | None = Field(
        default=None, description="digits, breast-cancer, wine, or a CSV file with a target column"
    )
    target: str = Field(default="target", description="the column of a CSV file that is predicted")
    columns: Annotated[tuple[str, ...], Field(min_length=1)] | None = Field(
        default=None, description="the columns of a CSV file that are learnt from; all others if left out"
    )
    group: str | None = Field(
        default=None, description="a column of a CSV file, such as patient, whose equal rows are held out together"
    )
    metric: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9 _-]{0,39}$")] | None = Field(
        default=None,
        description="accuracy, the default, or log-loss of the held-out 30 %, for ranking; a function names its own",
    )
    rounds: Annotated[int, Field(ge=1, le=10_000)] = Field(
        default=1, description="boosting rounds, or passes over the data, of an iteration"
    )
    timeout: Annotated[Duration, Field(gt=0)] | None = Field(
        default=None, description="a trial without a checkpoint for so long is ended, and left out the third time"
    )
    space: dict[str, Log | Uniform | Whole | Choice] = Field(default_factory=dict)

    @property
    def measured(self) -> str:
        """The name of the metric."""
        return self.metric or ("accuracy" if self.function is None else "metric")

    def shown(self, value: float) -> float:
        """Return the metric as it is read; trials are ranked by one of which more is better, a loss by its negative."""
        return -value if self.estimator is not None and self.metric == "log-loss" else value


class Delay(Model):
    """A random time by mean and standard deviation."""

    mean: Duration
    std: Duration = 0.0


class Iteration(Model):
    """One iteration of a trial on one accelerator."""

    mean: Duration
    std: Duration = 0.0


Time = Annotated[Duration | Delay, Field(union_mode="left_to_right")]


Variation = Annotated[
    Annotated[float, Field(ge=0, le=MOST_VARIATION)] | Annotated[Percent, Field(ge=0, le=MOST_VARIATION)],
    Field(union_mode="left_to_right"),
]
"""A standard deviation over its mean: 0.25, 25%, or 150% where a few trials take many times as long as most."""


Names = Annotated[str | tuple[str, ...], Field(union_mode="left_to_right")]


class Recorded(Model):
    """An earlier run: a folder of Ray Tune, or a table (CSV, JSON, JSON Lines) with a row a checkpoint or a trial.

    Columns have the names that Ray Tune, Weights & Biases or Optuna give them, where nothing else is said.
    """

    path: str
    trial: Names | None = Field(default=None, description="the column, or columns, that tell trials apart")
    iteration: str | None = Field(default=None, description="how many iterations a trial has run")
    elapsed: str | None = Field(default=None, description="seconds since a trial began")
    seconds: str | None = Field(default=None, description="seconds of an iteration, where nothing is elapsed")
    iters: Count = Field(default=1, description="iterations from row to row, where no column counts them")
    accelerators: Annotated[int, Field(ge=1, le=1024)] = Field(default=1, description="that each trial had")
    where: dict[str, Annotated[str | int, Field(union_mode="left_to_right")]] = Field(
        default_factory=dict, description="only rows with these values, by column"
    )


class ProfileSpec(Model):
    """Timings of the job. Measured by ``unfold profile`` where left out."""

    iteration: Iteration | None = None
    recorded: Recorded | None = Field(
        default=None, description="instead of iteration: its times, and trial_spread, from an earlier run"
    )
    speedup: dict[int, float] = Field(
        default_factory=lambda: {1: 1.0}, description="speed-up by accelerators of a trial, over one"
    )
    across: dict[int, float] | None = Field(
        default=None, description="the same for trials over several instances; a size that is not here is as in speedup"
    )
    provision: Time = Field(default=45.0, description="from request to running; alone, it varies by 50 %")
    startup: Time = Field(default=60.0, description="from running to ready, billed; alone, it varies by 15 %")
    start: Time = Field(default=0.0, description="start of a trial with its checkpoint")
    sync: Time = Field(default=10.0, description="between two stages: rank, checkpoint, move")
    trial_spread: Variation = Field(default=0.05, description="variation of speed between trials, which lasts")
    worker_spread: Variation = Field(default=0.0, description="variation between the workers of one trial")
    error: Fraction = Field(default=0.1, description="how wrong the profile itself may be")


class InstanceSpec(Model):
    """An instance type with figures of your own, which go before those of the catalog."""

    type: str = Field(min_length=1)
    price: Price | None = None
    spot: Price | None = None
    accelerators: Annotated[int, Field(ge=1, le=1024)] | None = None
    speed: Annotated[float, Field(gt=0, le=1000)] = Field(
        default=1.0, description="of an accelerator, to the profile's"
    )


class BillingSpec(Model):
    """Rules of the bill."""

    increment: Duration = 1.0
    minimum: Duration = 60.0
    per: Literal["instance", "function"] = "instance"


class Launch(Model):
    """How ``train`` starts instances of AWS. The image needs Ray and what the trainable imports."""

    image: str = Field(pattern=r"^ami-[0-9a-f]+$", description="AMI, such as ami-0abcdef1234567890")
    subnet: str | None = None
    security_groups: tuple[str, ...] = ()
    role: str | None = Field(default=None, description="name of the IAM instance profile")
    setup: str = Field(default="", max_length=8000, description="shell lines to run before the instance joins")
    grace: Duration = Field(default=3600.0, description="after the deadline, an instance ends itself after that")


class Cloud(Model):
    """What can be rented, and how it is paid."""

    provider: Literal["aws", "gcp", "azure", "local"] = Field(
        default="aws", description="train starts instances of aws and local; others are planned for, from given prices"
    )
    region: str = "us-east-1"
    instances: Annotated[tuple[str | InstanceSpec, ...], Field(min_length=1, max_length=16)]
    limit: Annotated[int, Field(ge=1, le=1024)] = Field(default=64, description="instances at most")
    market: Literal["on-demand", "spot", "either"] = "on-demand"
    interruptions: Rate = Field(default=0.2 / 3600, description="of a spot instance, such as 0.2/h")
    checkpoint_iters: Count = Field(default=1, description="iterations between two checkpoints")
    billing: BillingSpec = BillingSpec()
    data: Bytes = Field(default=0, description="copied to every new instance")
    transfer: Money = Field(default=0.0, description="for one GiB of it")
    head: Price = Field(default=0.0, description="of the head node, for the whole job")
    launch: Launch | None = Field(default=None, description="how train starts instances of AWS")
    prices: str | None = Field(default=None, description="a price list, CSV or JSON, or live to ask AWS")


class GangWords(Model):
    """All workers of a trial start at once, or none does: what this executor always holds."""

    by: Literal["trial"] = "trial"


class PackWords(Model):
    """A trial within one node where it fits, on the node that it fills best."""

    level: Literal["node"] = "node"


class SpreadWords(Model):
    """A trial on the node that runs the fewest others."""

    by: Literal["node"] = "node"


class Placing(Model):
    """The policy by which trials are placed, in the words of the kind ``placement``."""

    gang: Literal["trial"] | GangWords = "trial"
    pack: Literal["node"] | PackWords | None = None
    spread: Literal["node"] | SpreadWords | None = None


class TuningSpec(Spec):
    """Sizes the cluster of a tuning job stage by stage, and carries it out."""

    kind: Literal["tuning"]
    search: Annotated[
        Annotated[Halving | Hyperband | RandomSearch | Custom, Field(discriminator="algorithm")],
        BeforeValidator(known),
    ]
    trainable: Trainable | None = None
    deadline: Duration | None = Field(default=None, description="the cheapest plan that is on time")
    budget: Money | None = Field(
        default=None, description="alone: the fastest plan for it; with a deadline: a hard cap"
    )
    on_time: Fraction = Field(default=0.95, description="how sure to be on time")
    cloud: Cloud
    profile: ProfileSpec | None = None
    placement: Placing = Field(default=Placing(), description="which node a trial is given; packed if left out")
    samples: Annotated[int, Field(ge=100, le=100_000)] = Field(
        default=10_000,
        description="simulated runs of a plan; fewer where trials are so many that they would not fit into memory",
    )

    def problems(self) -> Iterable[Problem]:
        """Say what does not fit together."""
        if self.deadline is None and self.budget is None:
            yield Problem(("deadline",), "neither a deadline nor a budget", hint='write deadline: "30 min"')
        if not 0.5 <= self.on_time < 1:
            yield Problem(("on_time",), "a promise is at least 50% and less than 100%", hint='write "95%"')
        yield from _search_problems(self.search)
        if self.profile is not None:
            yield from _profile_problems(self.profile)
        yield from _cloud_problems(self.cloud)
        if self.placement.pack is not None and self.placement.spread is not None:
            yield Problem(("placement",), "pack and spread together", hint="packed nodes fall empty: write pack: node")
        if self.trainable is not None:
            yield from _trainable_problems(self.trainable)


def _search_problems(search: Halving | Hyperband | RandomSearch | Custom) -> Iterable[Problem]:
    if isinstance(search, Halving) and search.min_iters > search.max_iters:
        yield Problem(("search", "min_iters"), f"{search.min_iters} is more than max_iters {search.max_iters}")
    if isinstance(search, Hyperband) and search.max_iters > 20_000:
        yield Problem(("search", "max_iters"), "Hyperband starts about as many trials: 20,000 at most")


def _profile_problems(profile: ProfileSpec) -> Iterable[Problem]:
    if (profile.iteration is None) == (profile.recorded is None):
        yield Problem(("profile",), "name iteration or recorded, one of them", hint="write iteration: {mean: 12 s}")
    if profile.iteration is not None and profile.iteration.mean <= 0:
        yield Problem(("profile", "iteration", "mean"), "an iteration takes some time")
    if profile.error > 0.5:
        yield Problem(("profile", "error"), "a profile that is wrong by more than 50% promises nothing")
    for key, table in (("speedup", profile.speedup), ("across", profile.across or {})):
        for gang, gain in table.items():
            if gang < 1 or gain <= 0:
                yield Problem(("profile", key, gang), "accelerators and speed-up are positive", at_key=True)
    if profile.speedup.get(1) != 1.0:
        yield Problem(("profile", "speedup"), "the speed-up of one accelerator is 1", hint="write {1: 1, 2: 1.9}")


def _cloud_problems(cloud: Cloud) -> Iterable[Problem]:
    if cloud.provider in ("gcp", "azure"):
        yield from _given_problems(cloud)
    if cloud.provider == "local":
        for index, item in enumerate(cloud.instances):
            if isinstance(item, str) or item.price is None or item.accelerators is None:
                hint = "write {type: node, accelerators: 1, price: $0.05/h}"
                yield Problem(("cloud", "instances", index), "a local node needs accelerators and a price", hint=hint)
        if cloud.market != "on-demand":
            yield Problem(("cloud", "market"), "there is no spot market on this machine")


def _given_problems(cloud: Cloud) -> Iterable[Problem]:
    """Only prices of AWS are in the catalog."""
    if cloud.prices == "live":
        yield Problem(("cloud", "prices"), "live asks AWS", hint="name a SkyPilot vms.csv")
    for index, item in enumerate(cloud.instances):
        if cloud.prices is None and (isinstance(item, str) or item.price is item.spot is None):
            hint = "write cloud.prices: vms.csv, or {type: a2-highgpu-1g, price: $3.67/h, accelerators: 1}"
            yield Problem(("cloud", "instances", index), f"no price of {cloud.provider} is known here", hint=hint)


def _trainable_problems(trainable: Trainable) -> Iterable[Problem]:
    if (trainable.estimator is None) == (trainable.function is None):
        yield Problem(("trainable",), "name an estimator or a function, not both", hint="write estimator: xgboost")
    if trainable.estimator is not None and trainable.data is None:
        yield Problem(("trainable",), "an estimator needs data", hint="write data: digits")
    if trainable.estimator is not None and trainable.measured not in METRICS:
        known = did_you_mean(trainable.measured, METRICS) or "write accuracy or log-loss; a function names its own"
        yield Problem(("trainable", "metric"), f"an estimator has no metric {trainable.metric!r}", hint=known)
    for name, item in trainable.space.items():
        low, high = bounds(item)
        if low >= high or (isinstance(item, Log) and low <= 0):
            yield Problem(("trainable", "space", name), "the bounds are not in order", hint="write [low, high]")


def bounds(item: Log | Uniform | Whole | Choice) -> tuple[float, float]:
    """Return the two ends of a dimension; of a choice, the indices just around its values."""
    if isinstance(item, Log):
        return item.log
    if isinstance(item, Uniform):
        return item.uniform
    return item.int_ if isinstance(item, Whole) else (-1, len(item.choice))
