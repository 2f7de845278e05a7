"""Renting from AWS, against a moto server over HTTP: real sockets, nothing of it in this process."""

from __future__ import annotations

import datetime as dt
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ReadTimeoutError

sys.path.insert(0, str(Path(__file__).parent))

from unfold_tuning.cluster import orphans
from unfold_tuning.cluster.aws import (
    EXPIRES_TAG,
    FOLDER_TAG,
    ORDER_TAG,
    RUN_TAG,
    AwsFleet,
    Request,
    ended_at,
    user_data,
)
from unfold_tuning.cluster.local import LocalCluster
from unfold_tuning.executor.executor import Executor, Task
from unfold_tuning.job.allocation import Deal
from unfold_tuning.job.profile import Machine, Profile, Spread
from unfold_tuning.job.schedule import custom
from unfold_tuning.schema.models import Launch, Trainable, Uniform
from unfold_tuning.trial.ledger import Ledger, opened
from unfold_tuning.trial.trainable import Work
from unfoldkit.api import RunDir, UnfoldError
from unfoldkit.catalog.billing import Billing

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:botocore")
KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}
MACHINE = Machine("g5.xlarge", 1, 3.6, limit=4, billing=Billing(0.0, 0.0))
LAUNCH = Launch(image="ami-0abcdef1234567890")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """The address of a moto server in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            wait_for(port)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


def wait_for(port: int) -> None:
    """Wait until something listens."""
    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError("moto does not listen")


@pytest.fixture
def ec2(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client of an account of its own: whatever an earlier test left is terminated."""
    for key, value in {**KEYS, "AWS_ENDPOINT_URL": endpoint}.items():
        monkeypatch.setenv(key, value)
    made = boto3.client("ec2")
    left = [item["InstanceId"] for item in instances(made)]
    if left:
        made.terminate_instances(InstanceIds=left)
    return made


def instances(ec2: Any, *states: str) -> list[Any]:
    """Return the instances, of some states or all."""
    pages = ec2.get_paginator("describe_instances").paginate()
    found = [item for page in pages for one in page["Reservations"] for item in one["Instances"]]
    return [item for item in found if not states or item["State"]["Name"] in states]


def fleet(ec2: Any, ledger: Ledger, machine: Machine = MACHINE, folder: Path | None = None) -> AwsFleet:
    """Return a fleet that polls quickly."""
    request = Request(machine, LAUNCH, "10.0.0.1:6379", str(folder or ""), time.time() + 3600)
    return AwsFleet(ec2, request, "us-east-1", ledger, poll=0.05)


def nothing() -> None:
    """Watch nothing."""


def tags(item: Any) -> dict[str, str]:
    """Return an instance's tags."""
    return {tag["Key"]: tag["Value"] for tag in item["Tags"]}


def test_every_instance_carries_its_run_and_is_billed_from_running_to_terminated(ec2: Any, tmp_path: Path) -> None:
    """What is rented is tagged with run, order and expiry from its first moment, and billed until it is terminated."""
    with opened(tmp_path / "l.sqlite", MACHINE, "a") as ledger:
        rented = fleet(ec2, ledger)
        names = rented.rent(3, nothing)
        running = instances(ec2, "running")
        assert sorted(names) == sorted(item["InstanceId"] for item in running)
        assert all({RUN_TAG, ORDER_TAG, FOLDER_TAG, EXPIRES_TAG} <= tags(item).keys() for item in running)
        assert {tags(item)[RUN_TAG] for item in running} == {rented.run}
        for name in names:
            rented.release(name)
        assert not instances(ec2, "running", "pending")
        assert [life.until is not None for life in ledger.lives()] == [True] * 3
        assert sorted(life.id for life in ledger.lives()) == sorted(names)


def test_a_lost_answer_is_not_paid_twice(ec2: Any, tmp_path: Path) -> None:
    """When the answer to a request is lost the instances are found by their order, and no others are asked for."""
    with opened(tmp_path / "l.sqlite", MACHINE, "a") as ledger:
        rented = fleet(Deaf(ec2, lost=1), ledger)
        names = rented.rent(2, nothing)
        assert sorted(names) == sorted(item["InstanceId"] for item in instances(ec2, "running", "pending"))


def test_a_request_that_was_carried_out_twice_leaves_the_number_that_was_asked_for(ec2: Any, tmp_path: Path) -> None:
    """A fake that ignores client tokens gives too many: the surplus ends at once."""
    with opened(tmp_path / "l.sqlite", MACHINE, "a") as ledger:
        rented = fleet(Deaf(ec2, lost=0, twice=True), ledger)
        names = rented.rent(2, nothing)
        assert len(names) == 2
        assert sorted(names) == sorted(item["InstanceId"] for item in instances(ec2, "running", "pending"))


def test_a_wait_that_is_broken_off_leaves_nothing_behind(ec2: Any, tmp_path: Path) -> None:
    """What ends the wait for new instances (the cap, Ctrl-C) also ends the instances."""

    def stop() -> None:
        raise KeyboardInterrupt

    with opened(tmp_path / "l.sqlite", MACHINE, "a") as ledger:
        with pytest.raises(KeyboardInterrupt):
            fleet(ec2, ledger).rent(2, stop)
        assert not instances(ec2, "running", "pending")
        assert all(life.until is not None for life in ledger.lives())


@pytest.mark.parametrize("price", [0.00001, 5000.0, float("nan")])
def test_absurd_prices_rent_nothing(ec2: Any, tmp_path: Path, price: float) -> None:
    """At a price that cannot be true, as fakes give, no instance is asked for."""
    before = len(instances(ec2))
    machine = replace(MACHINE, price=price)
    with opened(tmp_path / "l.sqlite", machine, "a") as ledger:
        with pytest.raises(UnfoldError, match="nothing is rented"):
            fleet(ec2, ledger, machine).rent(1, nothing)
        assert ledger.orders() == []
    assert len(instances(ec2)) == before


def test_spot_is_asked_for_once_and_ends_when_interrupted(ec2: Any, tmp_path: Path) -> None:
    """A spot machine is rented on the spot market."""
    machine = replace(MACHINE, market="spot")
    with opened(tmp_path / "l.sqlite", machine, "a") as ledger:
        rented = fleet(ec2, ledger, machine)
        rented.rent(1, nothing)
        assert [item["InstanceLifecycle"] for item in instances(ec2, "running")] == ["spot"]
        rented.close()
        assert not instances(ec2, "running", "pending")


def test_a_plan_is_carried_out_on_rented_instances(ec2: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan of 2, 1, 2 instances rents three in all; ledger and cloud name the same ones, and none is left."""
    monkeypatch.setenv("SLEEPER_LOG", str(tmp_path / "log"))
    before = {item["InstanceId"] for item in instances(ec2)}
    with opened(tmp_path / "l.sqlite", MACHINE, "a") as ledger:
        cluster = LocalCluster(Work(TRAINABLE), 1, fleet(ec2, ledger))
        outcome = Executor(task(tmp_path), ledger, cluster).run()
        rented = {item["InstanceId"] for item in instances(ec2)} - before
        assert rented == {life.id for life in ledger.lives()}
        assert len(rented) == 3
        assert outcome.winner is not None
    assert not instances(ec2, "running", "pending")


def test_after_kill_nine_the_next_attempt_ends_what_was_left(ec2: Any, endpoint: str, tmp_path: Path) -> None:
    """A killed driver leaves instances; doctor finds them; the resumed run bills and ends them all."""
    before = {item["InstanceId"] for item in instances(ec2)}
    environment = {**os.environ, "SLEEPER_LOG": str(tmp_path / "log"), "PYTHONPATH": str(Path(__file__).parent)}
    words = [sys.executable, str(Path(__file__)), str(tmp_path)]
    with subprocess.Popen(words, env=environment) as driver:
        while not (tmp_path / "log").exists():
            assert driver.poll() is None
            time.sleep(0.05)
        held = list(orphans.look(ec2, "us-east-1", dt.datetime.now(dt.UTC)))
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    assert {item.state for item in held} == {"held"}
    lost = list(orphans.look(ec2, "us-east-1", dt.datetime.now(dt.UTC)))
    assert {item.state for item in lost} == {"orphan"}
    assert not orphans.told(lost, ["us-east-1"]).ok
    killed = time.time()
    subprocess.run(words, env=environment, check=True)
    assert not instances(ec2, "running", "pending")
    with opened(tmp_path / "l.sqlite", MACHINE, "a") as ledger:
        lives = {life.id: life for life in ledger.lives()}
        assert lives.keys() == {item["InstanceId"] for item in instances(ec2)} - before
        assert all((lives[item.name].until or 0) >= killed for item in lost)
        finished = {trial for trial, iters, *_ in ledger.steps() if iters == 6}
        assert finished


def test_doctor_finds_what_nobody_holds(ec2: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An instance of a run in this folder without a driver is an orphan; one whose driver lives is not."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs/t"
    with RunDir(folder).locked(), opened(folder / "ledger.sqlite", MACHINE, "a") as ledger:
        rented = fleet(ec2, ledger, folder=folder)
        names = rented.rent(1, nothing)
        assert list(orphans.ledger_regions(tmp_path)) == ["us-east-1"]
        assert orphans.left_running().ok
    left = orphans.left_running()
    assert not left.ok
    assert names[0] in left.message
    assert f"--instance-ids {names[0]}" in left.hint
    ec2.terminate_instances(InstanceIds=names)
    assert orphans.left_running().ok


def test_instances_of_other_machines_are_orphans_when_expired() -> None:
    """Of a run whose folder is not here, an instance is left alone until it should have ended itself."""
    now = dt.datetime(2026, 11, 24, tzinfo=dt.UTC)
    away = {FOLDER_TAG: "/somewhere/else", EXPIRES_TAG: "2026-11-24T01:00:00+00:00"}
    assert orphans.state(away, now) == "away"
    assert orphans.state(away, now + dt.timedelta(hours=2)) == "orphan"
    assert orphans.state({}, now) == "orphan"


def test_an_instance_ends_itself_and_joins_under_its_name() -> None:
    """What an instance runs at its start: its own end first, then the user's lines, then Ray."""
    launch = LAUNCH.model_copy(update={"setup": "pip install mine"})
    request = Request(MACHINE, launch, "10.0.0.1:6379", "", 7200.0)
    lines = user_data(request, 0.0).splitlines()
    assert lines[:3] == ["#!/bin/sh", "shutdown -h +120", "pip install mine"]
    assert lines[-1].startswith("ray start --address=10.0.0.1:6379")
    assert '\\"unfold-$ID\\": 1' in lines[-1]


def test_the_end_of_an_instance_is_read_from_words() -> None:
    """AWS tells the end of an instance in a sentence; without one it is not known."""
    gone = {"State": {"Name": "terminated"}, "StateTransitionReason": "User initiated (2026-11-24 21:00:00 GMT)"}
    assert ended_at(gone) == dt.datetime(2026, 11, 24, 21, tzinfo=dt.UTC).timestamp()
    assert ended_at({"State": {"Name": "terminated"}}) is None
    assert ended_at({**gone, "State": {"Name": "running"}}) is None


class Deaf:
    """A client that carries requests for instances out, but loses ``lost`` answers, or carries them out ``twice``."""

    def __init__(self, ec2: Any, lost: int, *, twice: bool = False) -> None:
        self.ec2, self.lost, self.twice = ec2, lost, twice

    def run_instances(self, **given: Any) -> Any:
        """Rent, and maybe lose the answer."""
        made = self.ec2.run_instances(**given)
        if self.twice:
            return self.ec2.run_instances(**given)
        if self.lost:
            self.lost -= 1
            raise ReadTimeoutError(endpoint_url="moto")
        return made

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ec2, name)


TRAINABLE = Trainable(function="sleeper:train", space={"ceiling": Uniform(uniform=(0.0, 1.0))})


def task(folder: Path) -> Task:
    """Return a job of three stages on two, one and two instances."""
    plan = tuple(Deal(count, 1, count) for count in (2, 1, 2))
    stages = custom([(2, 2), (1, 2), (2, 2)])
    return Task(stages, plan, MACHINE, Profile(Spread(0.05)), TRAINABLE, folder / "trials", 0, 1)


def drive(folder: Path) -> None:
    """Carry the job out as ``train`` does, resuming what is there."""
    with RunDir(folder).locked(), opened(folder / "l.sqlite", MACHINE, "a") as ledger:
        rented = fleet(boto3.client("ec2"), ledger, folder=folder)
        ledger.close_parts()
        rented.recover()
        ledger.close_open()
        long = custom([(2, 6), (1, 6)])
        plan = (Deal(2, 1, 2), Deal(1, 1, 1))
        made = replace(task(folder), stages=long, plan=plan)
        Executor(made, ledger, LocalCluster(Work(TRAINABLE), 1, rented)).run()


if __name__ == "__main__":
    drive(Path(sys.argv[1]))
