"""Runs on a cloud that refuses, throttles, grants in part, and loses responses, zones and drivers: is any run aborted?

Executor, ledger and the AWS provider are those of ``train``, against moto in this process behind a client that
misbehaves. Trials are simulated on a virtual clock, so that an hour takes a second.
"""

from __future__ import annotations

import datetime as dt
import logging
import os
import random
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from benchmarks.frame import need
from unfold_tuning.cluster.aws import RUN_TAG, AwsProvider, LaunchRequest
from unfold_tuning.cluster.interface import ClusterEvent
from unfold_tuning.cluster.offers import list_offers
from unfold_tuning.executor.executor import Executor
from unfold_tuning.executor.inputs_and_outcome import ExecutionConfig
from unfold_tuning.job.problem import LaunchConfig, TrainableConfig
from unfold_tuning.job.profile import LogNormal, Machine, Profile
from unfold_tuning.job.schedule import build_successive_halving
from unfold_tuning.job.search_space import Uniform
from unfold_tuning.planner.planner import evaluate_machine
from unfold_tuning.simulator.execution_model import build_execution_model
from unfold_tuning.trial.ledger import open_ledger
from unfold_tuning.trial.worker import TrialJob, WorkerMessage, save_state
from unfoldkit.api import UnfoldError
from unfoldkit.catalog.billing import Billing

RUNS, SHOWN_RUNS = 1000, 100
STAGES = build_successive_halving(18, 2, 18, 3)
ITERATION_S = 240.0
MACHINE = Machine("g5.12xlarge", 4, 5.672, max_instances=6, billing=Billing(1.0, 60.0), market="spot")
FALLBACK = replace(MACHINE, usd_per_hour=8.0, market="on-demand")
OTHER = Machine("g6.12xlarge", 4, 6.0, max_instances=6, billing=Billing(1.0, 60.0))
ZONES = ("us-east-1a", "us-east-1b")
PROFILE = Profile(
    LogNormal(ITERATION_S, 24.0),
    ((1, 1.0), (2, 1.87), (4, 3.42)),
    provision=LogNormal(45.0, 22.5),
    startup=LogNormal(60.0, 9.0),
    sync=LogNormal(5.0),
    trial_cv=0.1,
    error_cv=0.1,
)
SLACK = 2.0
PROMISE = 0.95
STEP_S = 20.0
IMAGE = "ami-12c6146b"
"""An image that moto knows."""
BUDGET_USD, SMALL_BUDGET_USD = 60.0, 8.0
"""The small cap stops every fifth run; it is no run that could be on time."""


class CrashError(BaseException):
    """The driver is gone, as after ``kill -9``: nothing of it runs any more."""


@dataclass(slots=True)
class Clock:
    """A virtual wall clock; the driver crashes when it passes ``crash_at``."""

    now: float = 1_800_000_000.0
    crash_at: float = float("inf")

    def read(self) -> float:
        """Return the time."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let time pass.

        Raises:
            CrashError: The driver crashes meanwhile.
        """
        self.now += max(seconds, 0.0)
        if self.now >= self.crash_at:
            raise CrashError


@dataclass(slots=True)
class ChaosClient:
    """An EC2 client in front of moto which refuses, throttles, grants in part, and loses answers."""

    ec2: Any
    clock: Clock
    rng: random.Random
    stuck: set[str] = field(default_factory=set)
    launched: dict[str, float] = field(default_factory=dict)
    is_gone: bool = False
    counts: dict[str, int] = field(default_factory=dict)
    finished: set[tuple[int, int]] = field(default_factory=set)
    repeated: int = 0

    def run_instances(self, **parameters: Any) -> Any:
        """Rent, or not."""
        self._live()
        event = self.rng.random()
        if event < 0.2:
            raise self._refuse("InsufficientInstanceCapacity")
        if event < 0.3:
            raise self._refuse("RequestLimitExceeded")
        if event < 0.32 and parameters["InstanceType"] == OTHER.name:
            raise self._refuse("VcpuLimitExceeded")
        if event < 0.4:
            raise self._lose("lost before")
        if event < 0.55 and parameters["MaxCount"] > 1:
            if parameters["MinCount"] > 1:
                raise self._refuse("InsufficientInstanceCapacity")
            self._count("partial")
            count = self.rng.randint(1, parameters["MaxCount"] - 1)
            parameters = {**parameters, "MinCount": count, "MaxCount": count}
        # moto grants the minimum, AWS as many as it has
        parameters = {**parameters, "MinCount": parameters["MaxCount"]}
        response = self.ec2.run_instances(**parameters)
        names = [instance["InstanceId"] for instance in response["Instances"]]
        self.launched.update(dict.fromkeys(names, self.clock.now))
        if self.rng.random() < 0.04:
            self._count("pending for ever")
            self.stuck.update(names)
        if self.rng.random() < 0.08:
            raise self._lose("lost answers")
        return response

    def terminate_instances(self, **parameters: Any) -> Any:
        """Terminate, or be throttled."""
        self._live()
        if self.rng.random() < 0.15:
            raise self._refuse("RequestLimitExceeded", "TerminateInstances")
        return self.ec2.terminate_instances(**parameters)

    def get_paginator(self, name: str) -> Any:
        """Return a paginator which is throttled at times, and shows stuck instances as pending."""
        self._live()
        if self.rng.random() < 0.08:
            raise self._refuse("RequestLimitExceeded", "DescribeInstances")
        return _Paginator(self.ec2.get_paginator(name), self.stuck, self.launched)

    def _live(self) -> None:
        if self.is_gone:
            raise CrashError

    def _refuse(self, code: str, operation: str = "RunInstances") -> Exception:
        from botocore.exceptions import ClientError

        self._count(code)
        error: Exception = ClientError({"Error": {"Code": code, "Message": "chaos"}}, operation)
        return error

    def _lose(self, name: str) -> Exception:
        from botocore.exceptions import ReadTimeoutError

        self._count(name)
        error: Exception = ReadTimeoutError(endpoint_url="chaos")
        return error

    def _count(self, name: str) -> None:
        self.counts[name] = self.counts.get(name, 0) + 1


@dataclass(slots=True)
class _Paginator:
    inner: Any
    stuck: set[str]
    launched: dict[str, float]

    def paginate(self, **parameters: Any) -> Iterator[Any]:
        for page in self.inner.paginate(**parameters):
            for reservation in page["Reservations"]:
                for instance in reservation["Instances"]:
                    at = self.launched.get(instance["InstanceId"], 0.0)
                    instance["LaunchTime"] = dt.datetime.fromtimestamp(at, dt.UTC)
                    # its own clock is not the virtual one
                    instance["StateTransitionReason"] = ""
                    if instance["InstanceId"] in self.stuck and instance["State"]["Name"] == "running":
                        instance["State"]["Name"] = "pending"
            yield page


@dataclass(slots=True)
class SimulatedCluster:
    """Nodes of a provider on which trials advance with the virtual clock; see ``Cluster``."""

    provider: AwsProvider
    client: ChaosClient
    clock: Clock
    rng: random.Random
    losses_per_hour: float
    nodes: list[str] = field(default_factory=list)
    running: dict[int, tuple[str, TrialJob, float]] = field(default_factory=dict)

    def open(self) -> None:
        """Do nothing."""

    def allow_on_demand(self) -> None:
        """Let the provider rent on-demand nodes."""
        self.provider.allow_on_demand()

    def resize(self, count: int, watch: Callable[[], None]) -> None:
        """Grow or shrink as the Ray cluster does."""
        self.release_idle(count)
        if len(self.nodes) < count:
            names = self.provider.rent(count - len(self.nodes), watch, is_required=not self.nodes)
            if names:
                self.clock.sleep(self.rng.lognormvariate(np.log(60.0), 0.15))
            self.nodes += names

    def release_idle(self, kept: int) -> int:
        """Release nodes without a trial as the Ray cluster does."""
        idle = [name for name in self.nodes if not self._used(name)]
        surplus = idle[: max(0, len(self.nodes) - kept)]
        for name in surplus:
            self.nodes.remove(name)
            self.provider.release(name)
        return len(surplus)

    def can_grow(self, count: int) -> bool:
        """Return whether nodes are missing and an offer is awake."""
        return len(self.nodes) < count and self.provider.can_rent()

    def find_node(self, workers: int) -> str | None:
        """Find the fullest node with room."""
        fitting = [name for name in self.nodes if MACHINE.accelerators - self._used(name) >= workers]
        return max(fitting, key=self._used) if fitting else None

    def start(self, node: str, job: TrialJob) -> None:
        """Start a trial; its first checkpoint ends one iteration later."""
        self.running[job.trial] = (node, job, self.clock.now + self._iteration(job))

    def free(self, trial: int) -> None:
        """Free a trial's accelerators."""
        self.running.pop(trial, None)

    def stop(self, trial: int) -> None:
        """Free a trial's accelerators."""
        self.free(trial)

    def kill(self, trial: int) -> None:
        """Do nothing: no trial hangs."""

    def poll_events(self, timeout_s: float) -> Iterator[ClusterEvent]:
        """Let time pass to the next checkpoint, or to the loss of a zone."""
        due = min((at for _, _, at in self.running.values()), default=self.clock.now + timeout_s)
        step = max(0.0, min(due - self.clock.now, STEP_S))
        self.clock.sleep(step)
        if self.nodes and self.rng.random() < self.losses_per_hour * step / 3600.0:
            yield from self._lose_zone()
            return
        for trial, (node, job, at) in list(self.running.items()):
            if at > self.clock.now or trial not in self.running:
                continue
            done = job.done + 1
            self.client.repeated += (trial, done) in self.client.finished
            self.client.finished.add((trial, done))
            save_state(job, done, b"state")
            moved = replace(job, done=done)
            self.running[trial] = (node, moved, self.clock.now + self._iteration(job))
            metric = float(job.config["quality"]) * (1 - 0.8**done)
            yield ClusterEvent(
                node,
                trial,
                WorkerMessage(kind="step", trial=trial, iters=done, metric=metric, seconds=at - self._began(job, at)),
            )

    def close(self) -> None:
        """Release every node."""
        self.provider.close()

    def _lose_zone(self) -> Iterator[ClusterEvent]:
        lost = list(self.nodes)
        self.client.ec2.terminate_instances(InstanceIds=lost)
        for name in lost:
            self.nodes.remove(name)
            self.provider.release(name)
        for trial, (node, _, _) in list(self.running.items()):
            yield ClusterEvent(node, trial, None)
        if not self.running:
            yield ClusterEvent(lost[0], -1, None)

    def _used(self, name: str) -> int:
        return sum(job.workers for node, job, _ in self.running.values() if node == name)

    def _iteration(self, job: TrialJob) -> float:
        gain = PROFILE.get_speedup(job.workers, MACHINE.accelerators)
        jitter = np.random.default_rng([job.trial, job.done]).uniform(0.9, 1.1)
        return float(ITERATION_S * float(job.config["pace"]) / gain * jitter)

    def _began(self, job: TrialJob, at: float) -> float:
        return at - self._iteration(job)


def run(quick: bool, seed: int, data: Path | None) -> dict[str, Any]:  # noqa: ARG001 - needs no data
    """Count how runs end.

    Args:
        quick: 20 runs instead of 1,000.
        seed: Of the first run.
        data: Unused.

    Returns:
        ``metrics``, ``tables``, ``aims`` and ``notes``.
    """
    need("moto", "test")
    logging.getLogger("unfoldkit").setLevel(logging.CRITICAL)
    model = build_execution_model(STAGES, PROFILE, MACHINE, 1000, seed)
    candidate = evaluate_machine(model, PROMISE)
    deadline_s = SLACK * float(candidate.guaranteed_s.min())
    plan = candidate.select_cheapest(deadline_s)
    if plan is None:
        raise AssertionError("twice the soonest promise can be kept")
    session = open_session()
    rows = [play(index, plan.plan, deadline_s, session) for index in range(seed, seed + (20 if quick else RUNS))]
    events: dict[str, int] = {}
    for row in rows:
        for name, count in row.pop("events").items():
            events[name] = events.get(name, 0) + count
    metrics = {
        "runs": len(rows),
        "aborted": sum(bool(row["error"]) for row in rows),
        "orphans": sum(row["orphans"] for row in rows),
        "over_cap": sum(row["spent_usd"] > row["budget_usd"] + 1e-6 for row in rows),
        "on_time_percent": 100 * fmean(row["is_on_time"] for row in rows if not is_capped(row["seed"])),
        "stopped_by_cap": sum(bool(row["stopped"]) for row in rows),
        "crashes": sum(row["crashes"] for row in rows),
        "repeated_iterations": sum(row["repeated"] for row in rows),
    }
    aims = {"aborted": "0", "orphans": "0", "over_cap": "0", "on_time_percent": "≥ 93"}
    return {
        "metrics": metrics,
        "tables": {"first runs": rows[:SHOWN_RUNS], "events": [events]},
        "aims": aims,
        "notes": _notes(),
    }


def open_session() -> Any:
    """Open a session of boto3 that all runs share, and keep moto from loading thousands of images for each of them."""
    import boto3
    import moto  # noqa: F401 - registers its handlers for sessions that are opened later

    os.environ["MOTO_EC2_LOAD_DEFAULT_AMIS"] = "false"
    return boto3.Session("testing", "testing", region_name="us-east-1")


def play(seed: int, plan: Any, deadline_s: float, session: Any) -> dict[str, Any]:
    """Run a job on a hostile cloud, again after every crash, until it ends."""
    from moto import mock_aws

    rng, clock = random.Random(seed), Clock()  # noqa: S311 - chaos, not cryptography
    budget_usd = SMALL_BUDGET_USD if is_capped(seed) else BUDGET_USD
    error, crashes, stop_reason = "", 0, ""
    began, ended = clock.now, clock.now
    events: dict[str, int] = {}
    finished: set[tuple[int, int]] = set()
    launched: dict[str, float] = {}
    repeated = 0
    with mock_aws(), warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        ec2 = session.client("ec2")
        config = build_config(Path(folder), plan, deadline_s, budget_usd, seed, clock)
        while True:
            clock.crash_at = clock.now + rng.expovariate(1 / 7200.0) if crashes < 3 else float("inf")
            client = ChaosClient(ec2, clock, rng, counts=events, finished=finished, launched=launched)
            try:
                outcome = attempt(config, client, clock, rng)
            except CrashError:
                crashes += 1
                repeated += client.repeated
                client.is_gone = True
                clock.crash_at = float("inf")
                clock.sleep(30.0)
                continue
            except UnfoldError as problem:
                error = str(problem)
                break
            repeated += client.repeated
            ended, stop_reason = outcome.ended, outcome.stop_reason
            began = outcome.began
            break
        alive = [
            instance["InstanceId"]
            for reservation in ec2.describe_instances(Filters=[{"Name": "tag-key", "Values": [RUN_TAG]}])[
                "Reservations"
            ]
            for instance in reservation["Instances"]
            if instance["State"]["Name"] in ("pending", "running", "stopping", "stopped")
        ]
        with open_ledger(Path(folder) / "ledger.sqlite", MACHINE, "chaos") as ledger:
            spent = ledger.compute_spent_usd()
    return {
        "seed": seed, "error": error, "crashes": crashes, "orphans": len(alive), "spent_usd": spent,
        "budget_usd": budget_usd, "seconds": ended - began, "deadline_s": deadline_s, "stopped": stop_reason,
        "is_on_time": not error and not stop_reason and ended - began <= deadline_s,
        "repeated": repeated, "events": events,
    }  # fmt: skip


def is_capped(seed: int) -> bool:
    """Return whether a run has a cap that stops it."""
    return seed % 5 == 4


def attempt(config: ExecutionConfig, client: ChaosClient, clock: Clock, rng: random.Random) -> Any:
    """Run one attempt, as ``train`` does, up to the end or a crash."""
    folder = config.folder.parent
    with open_ledger(folder / "ledger.sqlite", MACHINE, "chaos") as ledger:
        request = LaunchRequest(
            machine=MACHINE,
            launch=LaunchConfig(image=IMAGE),
            head_address="10.0.0.1:6379",
            folder=str(folder),
            expires_at=clock.now + 1e6,
            offers=list_offers(MACHINE, [MACHINE, FALLBACK, OTHER], ZONES),
        )
        provider = AwsProvider(client, request, "us-east-1", ledger, wall=clock.read, poll_s=5.0, sleep=clock.sleep)
        ledger.retry_if_all_failed()
        ledger.close_open_parts()
        provider.recover()
        ledger.close_open_lifetimes()
        cluster = SimulatedCluster(provider, client, clock, rng, losses_per_hour=0.4)
        return Executor(config, ledger, cluster).run()


def build_config(
    folder: Path, plan: Any, deadline_s: float, budget_usd: float, seed: int, clock: Clock
) -> ExecutionConfig:
    """Build the job."""
    space = {"quality": Uniform(0.0, 1.0), "pace": Uniform(0.85, 1.15)}
    return ExecutionConfig(
        stages=STAGES,
        plan=plan,
        machine=MACHINE,
        profile=PROFILE,
        trainable=TrainableConfig(function="simulated:train", space=space),
        folder=folder / "trials",
        seed=seed,
        checkpoint_iters=1,
        deadline_s=deadline_s,
        budget_usd=budget_usd,
        confidence=PROMISE,
        wall=clock.read,
    )


def _notes() -> list[str]:
    return [
        "Executor, ledger, re-planning and the AWS provider are the product's; EC2 is moto, trials are simulated.",
        "Of the requests 20 % find no capacity, 10 % are throttled, 15 % are granted in part, 4 % stay pending.",
        "Of the requests 8 % get no answer and are not taken; 8 % are taken and their answer is lost.",
        "All instances are lost at once 0.4 times an hour; the driver is killed every two hours and starts again.",
        "Every fifth run has a cap that it cannot keep: it must stop below it, and does not count as late.",
        "The deadline is twice the soonest promise, which knows nothing of refusals.",
    ]
