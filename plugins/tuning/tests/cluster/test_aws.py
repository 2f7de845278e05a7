"""Renting from AWS, against a moto server over HTTP in another process."""

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
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import boto3
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError, ReadTimeoutError
from botocore.parsers import ResponseParserError
from tuning_runs import SPEC, load_spec

from unfold_tuning.cluster import orphans, ray_nodes
from unfold_tuning.cluster.aws import (
    EXPIRES_TAG,
    FOLDER_TAG,
    ORDER_TAG,
    RUN_TAG,
    AwsProvider,
    LaunchRequest,
    build_user_data,
    make_ec2_client,
    parse_termination_time,
)
from unfold_tuning.cluster.local import LocalCluster
from unfold_tuning.cluster.offers import Offer, OfferBook, list_offers
from unfold_tuning.cluster.ray import RayCluster
from unfold_tuning.executor.executor import Executor
from unfold_tuning.executor.inputs_and_outcome import ExecutionConfig
from unfold_tuning.job.allocation import Allocation
from unfold_tuning.job.problem import LaunchConfig, TrainableConfig
from unfold_tuning.job.profile import LogNormal, Machine, Profile
from unfold_tuning.job.schedule import build_custom_stages
from unfold_tuning.job.search_space import Uniform
from unfold_tuning.trial.ledger import Ledger, open_ledger
from unfold_tuning.trial.trainable import WorkerSetup
from unfold_tuning.verbs import profile as profile_verb
from unfoldkit.api import ExitCode, Run, RunDir, UnfoldError
from unfoldkit.catalog.billing import Billing

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:botocore")
KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}
MACHINE = Machine("g5.xlarge", 1, 3.6, max_instances=4, billing=Billing(0.0, 0.0))
LAUNCH = LaunchConfig(image="ami-0abcdef1234567890")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """Start a moto server and return its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
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
    """Return a client of an account in which earlier instances are terminated."""
    for key, value in {**KEYS, "AWS_ENDPOINT_URL": endpoint}.items():
        monkeypatch.setenv(key, value)
    client = boto3.client("ec2")
    leftover = [item["InstanceId"] for item in list_instances(client)]
    if leftover:
        client.terminate_instances(InstanceIds=leftover)
    return client


def list_instances(ec2: Any, *states: str) -> list[Any]:
    """List the instances, of some states or all."""
    pages = ec2.get_paginator("describe_instances").paginate()
    items = [item for page in pages for reservation in page["Reservations"] for item in reservation["Instances"]]
    return [item for item in items if not states or item["State"]["Name"] in states]


def build_request(machine: Machine, folder: str, expires_at: float, launch: LaunchConfig = LAUNCH) -> LaunchRequest:
    """Build a request for a head at a fixed address."""
    return LaunchRequest(
        machine=machine, launch=launch, head_address="10.0.0.1:6379", folder=folder, expires_at=expires_at
    )


def build_provider(ec2: Any, ledger: Ledger, machine: Machine = MACHINE, folder: Path | None = None) -> AwsProvider:
    """Build a provider that polls quickly."""
    request = build_request(machine, str(folder or ""), time.time() + 3600)
    return AwsProvider(ec2, request, "us-east-1", ledger, poll_s=0.05)


def do_nothing() -> None:
    """Watch nothing."""


def read_tags(item: Any) -> dict[str, str]:
    """Read the tags of an instance."""
    return {tag["Key"]: tag["Value"] for tag in item["Tags"]}


def test_instances_are_tagged_and_billed_until_terminated(ec2: Any, tmp_path: Path) -> None:
    """Instances carry run, order and expiry from their first moment, and are billed until they are terminated."""
    with open_ledger(tmp_path / "l.sqlite", MACHINE, "a") as ledger:
        provider = build_provider(ec2, ledger)
        names = provider.rent(3, do_nothing)
        running = list_instances(ec2, "running")
        assert sorted(names) == sorted(item["InstanceId"] for item in running)
        assert all({RUN_TAG, ORDER_TAG, FOLDER_TAG, EXPIRES_TAG} <= read_tags(item).keys() for item in running)
        assert {read_tags(item)[RUN_TAG] for item in running} == {provider.run_id}
        for name in names:
            provider.release(name)
        assert not list_instances(ec2, "running", "pending")
        assert [life.until is not None for life in ledger.list_lifetimes()] == [True] * 3
        assert sorted(life.id for life in ledger.list_lifetimes()) == sorted(names)


def test_a_lost_response_is_not_billed_twice(ec2: Any, tmp_path: Path) -> None:
    """If the response to a request is lost, the instances are found by their order, and no others are requested."""
    with open_ledger(tmp_path / "l.sqlite", MACHINE, "a") as ledger:
        provider = build_provider(UnreliableClient(ec2, lost=1), ledger)
        names = provider.rent(2, do_nothing)
        assert sorted(names) == sorted(item["InstanceId"] for item in list_instances(ec2, "running", "pending"))


def test_a_refusal_after_a_lost_response_is_not_believed(ec2: Any, tmp_path: Path) -> None:
    """The client repeats a lost request itself; if a service without client tokens refuses that, instances exist."""

    def launch_and_refuse(**parameters: Any) -> Any:
        ec2.run_instances(**parameters)
        error = {"Code": "InsufficientInstanceCapacity", "Message": "full"}
        raise ClientError({"Error": error, "ResponseMetadata": {"RetryAttempts": 1}}, "RunInstances")

    client = UnreliableClient(ec2, lost=0)
    client.run_instances = launch_and_refuse  # type: ignore[method-assign]
    with open_ledger(tmp_path / "l.sqlite", MACHINE, "a") as ledger:
        names = build_provider(client, ledger).rent(2, do_nothing)
        assert len(names) == 2
        assert sorted(names) == sorted(item["InstanceId"] for item in list_instances(ec2, "running", "pending"))


def test_an_instance_that_only_the_end_of_a_run_finds_is_billed(ec2: Any, tmp_path: Path) -> None:
    """It ran under the tag of the run since its launch, and the ledger did not know it."""
    client = UnreliableClient(ec2, lost=0)
    with open_ledger(tmp_path / "l.sqlite", MACHINE, "a") as ledger:
        provider = build_provider(client, ledger)
        provider.rent(1, do_nothing)
        ec2.run_instances(**client.requests[0])
        provider.close()
        assert [life.until is not None for life in ledger.list_lifetimes()] == [True] * 2


def test_surplus_instances_are_terminated(ec2: Any, tmp_path: Path) -> None:
    """If a service ignores client tokens and starts too many instances, the surplus is terminated at once."""
    with open_ledger(tmp_path / "l.sqlite", MACHINE, "a") as ledger:
        provider = build_provider(UnreliableClient(ec2, lost=0, twice=True), ledger)
        names = provider.rent(2, do_nothing)
        assert len(names) == 2
        assert sorted(names) == sorted(item["InstanceId"] for item in list_instances(ec2, "running", "pending"))


def test_an_interrupted_wait_terminates_its_instances(ec2: Any, tmp_path: Path) -> None:
    """Whatever interrupts the wait for new instances (the cap, Ctrl-C), they are terminated."""

    def stop() -> None:
        raise KeyboardInterrupt

    with open_ledger(tmp_path / "l.sqlite", MACHINE, "a") as ledger:
        with pytest.raises(KeyboardInterrupt):
            build_provider(ec2, ledger).rent(2, stop)
        assert not list_instances(ec2, "running", "pending")
        assert all(life.until is not None for life in ledger.list_lifetimes())


def test_an_order_that_is_interrupted_before_its_answer_is_awaited(ec2: Any, tmp_path: Path) -> None:
    """Ctrl-C reaches the request, and AWS, which had it by then, starts the instances some seconds later."""
    client, sleeps, started = UnreliableClient(ec2, lost=0), iter(range(100)), list[str]()

    def interrupt(**parameters: Any) -> Any:
        client.requests.append(parameters)
        raise KeyboardInterrupt

    def sleep(_seconds: float) -> None:
        if next(sleeps) == 2:
            started.append(ec2.run_instances(**client.requests[0])["Instances"][0]["InstanceId"])

    client.run_instances = interrupt  # type: ignore[method-assign]
    with open_ledger(tmp_path / "l.sqlite", MACHINE, "a") as ledger:
        provider = build_provider(client, ledger)
        provider.sleep = sleep
        with pytest.raises(KeyboardInterrupt):
            provider.rent(1, do_nothing)
    assert started
    assert not list_instances(ec2, "running", "pending")


@pytest.mark.parametrize("price", [0.00001, 5000.0, float("nan")])
def test_implausible_prices_rent_nothing(ec2: Any, tmp_path: Path, price: float) -> None:
    """At an implausible price no instance is requested."""
    before = len(list_instances(ec2))
    machine = replace(MACHINE, usd_per_hour=price)
    with open_ledger(tmp_path / "l.sqlite", machine, "a") as ledger:
        with pytest.raises(UnfoldError, match="nothing is rented"):
            build_provider(ec2, ledger, machine).rent(1, do_nothing)
        assert ledger.list_orders() == []
    assert len(list_instances(ec2)) == before


def test_spot_machines_are_rented_on_the_spot_market(ec2: Any, tmp_path: Path) -> None:
    """A spot machine is rented on the spot market."""
    machine = replace(MACHINE, market="spot")
    with open_ledger(tmp_path / "l.sqlite", machine, "a") as ledger:
        provider = build_provider(ec2, ledger, machine)
        provider.rent(1, do_nothing)
        assert [item["InstanceLifecycle"] for item in list_instances(ec2, "running")] == ["spot"]
        provider.close()
        assert not list_instances(ec2, "running", "pending")


def test_a_plan_runs_on_rented_instances(ec2: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan of 2, 1, 2 instances rents three in all; ledger and cloud name the same ones, and none is left."""
    monkeypatch.setenv("SLEEPER_LOG", str(tmp_path / "log"))
    before = {item["InstanceId"] for item in list_instances(ec2)}
    with open_ledger(tmp_path / "l.sqlite", MACHINE, "a") as ledger:
        cluster = LocalCluster(WorkerSetup(TRAINABLE), 1, build_provider(ec2, ledger))
        outcome = Executor(build_config(tmp_path), ledger, cluster).run()
        rented = {item["InstanceId"] for item in list_instances(ec2)} - before
        assert rented == {life.id for life in ledger.list_lifetimes()}
        assert len(rented) == 3
        assert outcome.winner is not None
    assert not list_instances(ec2, "running", "pending")


def test_a_profile_rents_the_instance_that_is_named(ec2: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``profile --on TYPE`` rents one instance of that type, bills it, and terminates it."""
    monkeypatch.setenv("SLEEPER_LOG", str(tmp_path / "log"))
    monkeypatch.setattr(
        profile_verb, "build_cluster", lambda _, setup, size, provider: LocalCluster(setup, size, provider)
    )
    before = {item["InstanceId"] for item in list_instances(ec2)}
    instances = "[{type: g5.xlarge, accelerators: 1}, {type: g4dn.xlarge, accelerators: 1, price: $36/h}]"
    text = SPEC.replace("provider: local", "provider: aws, launch: {image: ami-0abcdef1234567890}")
    spec = load_spec(text.replace("[{type: p, accelerators: 1, price: $3.6/h}]", instances))
    engine: Any = SimpleNamespace(name="ray", address="10.0.0.1:6379")
    run = Run(directory=RunDir(tmp_path / "run"), engine=engine, allow_code=True, options={"on": "g4dn.xlarge"})
    report = profile_verb.profile(spec, run)
    rented = [item for item in list_instances(ec2) if item["InstanceId"] not in before]
    assert [item["InstanceType"] for item in rented] == ["g4dn.xlarge"]
    assert not list_instances(ec2, "running", "pending")
    assert (report.metrics["spent_usd"].value or 0) > 0
    assert dict(report.lines)["measured on"] == "g4dn.xlarge"


@pytest.mark.e2e
def test_the_next_attempt_terminates_what_a_killed_driver_left(ec2: Any, endpoint: str, tmp_path: Path) -> None:
    """A killed driver leaves instances; doctor finds them; the resumed run bills and terminates them all."""
    before = {item["InstanceId"] for item in list_instances(ec2)}
    environment = {**os.environ, "SLEEPER_LOG": str(tmp_path / "log"), "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, str(Path(__file__)), str(tmp_path)]
    with subprocess.Popen(command, env=environment) as driver:
        while not (tmp_path / "log").exists():
            assert driver.poll() is None
            time.sleep(0.05)
        held = list(orphans.find_tagged_instances(ec2, "us-east-1", dt.datetime.now(dt.UTC)))
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    assert {item.ownership for item in held} == {"held"}
    lost = list(orphans.find_tagged_instances(ec2, "us-east-1", dt.datetime.now(dt.UTC)))
    assert {item.ownership for item in lost} == {"orphan"}
    assert not orphans.report_orphans(lost, ["us-east-1"]).ok
    killed = time.time()
    subprocess.run(command, env=environment, check=True)
    assert not list_instances(ec2, "running", "pending")
    with open_ledger(tmp_path / "l.sqlite", MACHINE, "a") as ledger:
        lives = {life.id: life for life in ledger.list_lifetimes()}
        assert lives.keys() == {item["InstanceId"] for item in list_instances(ec2)} - before
        assert all((lives[item.name].until or 0) >= killed for item in lost)
        finished = {trial for trial, iters, *_ in ledger.list_checkpoints() if iters == 6}
        assert finished


@pytest.mark.e2e
def test_doctor_finds_orphans(ec2: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An instance of a run in this folder without a driver is an orphan; one with a living driver is not."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs/t"
    with RunDir(folder).locked(), open_ledger(folder / "ledger.sqlite", MACHINE, "a") as ledger:
        provider = build_provider(ec2, ledger, folder=folder)
        names = provider.rent(1, do_nothing)
        assert orphans.list_ledger_facts(tmp_path, "aws-region") == {folder: "us-east-1"}
        assert orphans.check_orphans().ok
    result = orphans.check_orphans()
    assert not result.ok
    assert names[0] in result.message
    assert f"--instance-ids {names[0]}" in result.hint
    ec2.terminate_instances(InstanceIds=names)
    assert orphans.check_orphans().ok


def test_instances_of_other_machines_are_orphans_when_expired() -> None:
    """If the folder of the run is not here, an instance is left alone until it should have shut itself down."""
    now = dt.datetime(2026, 11, 24, tzinfo=dt.UTC)
    away = {FOLDER_TAG: "/somewhere/else", EXPIRES_TAG: "2026-11-24T01:00:00+00:00"}
    assert orphans.classify_ownership(away, now) == "away"
    assert orphans.classify_ownership(away, now + dt.timedelta(hours=2)) == "orphan"
    assert orphans.classify_ownership({}, now) == "orphan"


def test_user_data_schedules_a_shutdown_and_joins_ray() -> None:
    """An instance first schedules its own shutdown, then runs the user's lines, then Ray."""
    request = build_request(MACHINE, "", 7200.0, replace(LAUNCH, setup="pip install mine"))
    lines = build_user_data(request, 0.0).splitlines()
    assert lines[:3] == ["#!/bin/sh", "shutdown -h +120", "pip install mine"]
    assert lines[-1].startswith("ray start --address=10.0.0.1:6379")
    assert '\\"unfold-$ID\\": 1' in lines[-1]


@pytest.mark.e2e
def test_termination_times_are_parsed_from_sentences() -> None:
    """AWS reports the end of an instance in a sentence; without one it is unknown."""
    gone = {"State": {"Name": "terminated"}, "StateTransitionReason": "User initiated (2026-11-24 21:00:00 GMT)"}
    assert parse_termination_time(gone) == dt.datetime(2026, 11, 24, 21, tzinfo=dt.UTC).timestamp()
    assert parse_termination_time({"State": {"Name": "terminated"}}) is None
    assert parse_termination_time({**gone, "State": {"Name": "running"}}) is None


def raise_refusals(ec2: Any, *codes: str) -> Any:
    """Return a client that gets these codes for its first requests for instances."""
    client = UnreliableClient(ec2, lost=0)
    client.refusals = list(codes)
    return client


def test_a_refused_offer_is_followed_by_the_next(ec2: Any, tmp_path: Path) -> None:
    """Without capacity in one zone the next one is tried, and the capacity log holds both attempts."""
    with open_ledger(tmp_path / "l.sqlite", MACHINE, "a") as ledger:
        provider = build_provider(raise_refusals(ec2, *["InsufficientInstanceCapacity"] * 2), ledger)
        zones = [Offer(MACHINE, "us-east-1a"), Offer(MACHINE, "us-east-1b")]
        provider.book = OfferBook(tuple(zones))
        assert len(provider.rent(2, do_nothing)) == 2
        zone = {item["Placement"]["AvailabilityZone"] for item in list_instances(ec2, "running")}
        assert zone == {"us-east-1b"}
        assert ledger.base.execute("SELECT offer, granted FROM capacity ORDER BY at").fetchall() == [
            ("g5.xlarge on-demand in us-east-1a", 0),
            ("g5.xlarge on-demand in us-east-1b", 1),
        ]
        provider.close()


def test_a_response_of_something_else_is_asked_for_again(ec2: Any, tmp_path: Path) -> None:
    """A response that is not of EC2, such as the page of a proxy, is a lost one: nothing ends and nothing is left."""
    client = UnreliableClient(ec2, lost=0)
    client.garbled = ["", "page", "page"]
    with open_ledger(tmp_path / "l.sqlite", MACHINE, "a") as ledger:
        provider = build_provider(client, ledger)
        assert len(provider.rent(1, do_nothing)) == 1
        assert len(list_instances(ec2, "running", "pending")) == 1
        provider.close()
        assert not list_instances(ec2, "running", "pending")


def test_an_instance_that_aws_has_forgotten_has_ended(
    ec2: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour after its end an instance is unknown: it is billed no longer, and no other stays because of it."""
    with open_ledger(tmp_path / "l.sqlite", MACHINE, "a") as ledger:
        provider = build_provider(ec2, ledger)
        provider.poll_s = 0.001
        names = provider.rent(1, do_nothing)
        forgotten = "i-0123456789abcdef0"
        ledger.record_node_start(forgotten, 3.6, time.time())
        provider.release(forgotten)
        assert [life.id for life in ledger.list_lifetimes() if life.until is None] == names
        monkeypatch.setattr(AwsProvider, "_list_alive", lambda *_: iter([forgotten, *names]))
        provider.close()
        assert not list_instances(ec2, "running", "pending")
        assert all(life.until is not None for life in ledger.list_lifetimes())


@pytest.mark.parametrize(("code", "attempts"), [("RequestLimitExceeded", 5), ("UnauthorizedOperation", 1)])
def test_a_node_that_cannot_be_terminated_does_not_hold_up_the_run(
    ec2: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, attempts: int
) -> None:
    """A release gives up after some seconds, or at once without access; the node is billed, and ends with the next."""
    refusal = ClientError({"Error": {"Code": code, "Message": "no"}}, "TerminateInstances")
    with open_ledger(tmp_path / "l.sqlite", MACHINE, "a") as ledger:
        provider = build_provider(ec2, ledger)
        provider.sleep = Mock()
        first, second = provider.rent(2, do_nothing)
        with monkeypatch.context() as patch:
            patch.setattr(ec2, "terminate_instances", Mock(side_effect=refusal))
            provider.release(first)
            assert ec2.terminate_instances.call_count == attempts
        assert ledger.count_running() == 2
        provider.release(second)
        assert not list_instances(ec2, "running", "pending")
        assert ledger.count_running() == 0


@pytest.mark.parametrize("code", ["AuthFailure", "RequestExpired", "ExpiredToken", "none"])
def test_missing_access_ends_at_once(
    ec2: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: str
) -> None:
    """Without credentials, or with expired ones, a run ends with exit code 2 before it waits for anything."""
    refusal = ClientError({"Error": {"Code": code, "Message": "no"}}, "DescribeInstances")
    error = NoCredentialsError() if code == "none" else refusal
    monkeypatch.setattr(ec2, "get_paginator", Mock(side_effect=error))
    with open_ledger(tmp_path / "l.sqlite", MACHINE, "a") as ledger:
        provider = build_provider(ec2, ledger)
        with pytest.raises(UnfoldError, match=r"cloud\.provider: AWS grants no access: ") as caught:
            provider.recover()
    assert caught.value.code is ExitCode.USAGE
    assert not caplog.records


def test_an_unknown_profile_of_aws_is_an_error_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """A profile that does not exist ends the run with exit code 2; ``doctor`` reports it and goes on."""
    monkeypatch.setenv("AWS_PROFILE", "nowhere")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    with pytest.raises(UnfoldError, match="nowhere") as caught:
        make_ec2_client("us-east-1")
    assert caught.value.code is ExitCode.USAGE
    assert "nowhere" in orphans.check_orphans().message


def test_throttling_repeats_the_same_request(ec2: Any, tmp_path: Path) -> None:
    """A throttled request is sent again with the same token and the same parameters."""
    client = raise_refusals(ec2, "RequestLimitExceeded", "Unavailable")
    with open_ledger(tmp_path / "l.sqlite", MACHINE, "a") as ledger:
        provider = build_provider(client, ledger)
        assert len(provider.rent(1, do_nothing)) == 1
        assert len(client.requests) == 3
        assert client.requests[0] == client.requests[1] == client.requests[2]
        provider.close()


def test_a_partial_grant_is_used(ec2: Any, tmp_path: Path) -> None:
    """Fewer instances than requested are used at once, and the offer rests before it is tried again."""
    client = UnreliableClient(ec2, lost=0)
    client.max_grant = 1
    with open_ledger(tmp_path / "l.sqlite", MACHINE, "a") as ledger:
        provider = build_provider(client, ledger)
        assert len(provider.rent(3, do_nothing)) == 1
        assert not provider.can_rent()
        provider.close()
        assert not list_instances(ec2, "running", "pending")


def test_a_refusal_releases_no_healthy_node(ec2: Any, tmp_path: Path) -> None:
    """Growth that is refused for good is not an error while a node is held, and the node stays."""
    with open_ledger(tmp_path / "l.sqlite", MACHINE, "a") as ledger:
        provider = build_provider(ec2, ledger)
        held = provider.rent(1, do_nothing)
        provider.ec2 = raise_refusals(ec2, *["VcpuLimitExceeded"] * 2)
        assert provider.rent(2, do_nothing, is_required=False) == []
        assert [item["InstanceId"] for item in list_instances(ec2, "running")] == held
        provider.close()


def test_refused_everywhere_without_a_node_is_an_error(ec2: Any, tmp_path: Path) -> None:
    """If no offer can ever be granted and nothing is held, the run ends with each reason once.

    Fewer instances are requested where that may help.
    """
    client = raise_refusals(ec2, "InvalidAMIID.NotFound", *["VcpuLimitExceeded"] * 4)
    with open_ledger(tmp_path / "l.sqlite", MACHINE, "a") as ledger:
        provider = build_provider(client, ledger)
        provider.book = OfferBook(tuple(Offer(MACHINE, f"us-east-1{zone}") for zone in "abc"))
        with pytest.raises(UnfoldError, match=r"NotFound for .* in us-east-1a; VcpuLimit\w+ for .*1b and 1 other \("):
            provider.rent(3, do_nothing)
        assert [request["MinCount"] for request in client.requests] == [3, 3, 1, 3, 1]


def test_a_refusal_is_one_line_with_its_reason_and_the_next_offer(
    ec2: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The log has neither the words of boto3 nor a line for each attempt; what rests, or is left, is named."""
    refusals = ["InsufficientInstanceCapacity"] * 2 + ["VcpuLimitExceeded"] * 2 + ["UnauthorizedOperation"]
    with open_ledger(tmp_path / "l.sqlite", MACHINE, "a") as ledger:
        provider = build_provider(raise_refusals(ec2, *refusals), ledger)
        provider.book = OfferBook(tuple(Offer(MACHINE, f"us-east-1{zone}") for zone in "abc"))
        assert provider.rent(2, do_nothing, is_required=False) == []
    offer = "g5.xlarge on-demand in us-east-1"
    assert caplog.messages == [
        f"{offer}a: 0 of 2 granted, no capacity (InsufficientInstanceCapacity); next: {offer}b",
        f"{offer}b: 0 of 2 granted, a quota is reached (VcpuLimitExceeded: refused); next: {offer}c",
        f"{offer}c: 0 of 2 granted, access denied (UnauthorizedOperation: refused); next: {offer}a in 5.0 min",
    ]


def test_the_next_offer_of_a_thrifty_run_may_wait_for_its_slack() -> None:
    """While on demand is not allowed, the log does not promise an offer; without any it names none."""
    spot = Offer(replace(MACHINE, market="spot"))
    book = OfferBook((spot, Offer(MACHINE)), is_on_demand_allowed=False)
    book.record_refusal(spot, 0.0, end_code="MaxSpotInstanceCountExceeded")
    assert book.describe_next(0.0) == "on demand when the slack runs out"
    book.is_on_demand_allowed = True
    assert book.describe_next(0.0) == "g5.xlarge on-demand"
    book.record_refusal(Offer(MACHINE), 0.0, end_code="VcpuLimitExceeded")
    assert book.describe_next(0.0) == "no other offer"


def test_a_new_run_waits_seconds_for_an_endpoint_that_is_down(tmp_path: Path) -> None:
    """Nothing is rented that could cost money meanwhile; a run that has ordered instances waits for minutes."""
    error = EndpointConnectionError(endpoint_url="http://nowhere")
    client, waited = Mock(get_paginator=Mock(side_effect=error)), list[float]()
    with open_ledger(tmp_path / "l.sqlite", MACHINE, "a") as ledger:
        provider = build_provider(client, ledger)
        provider.poll_s, provider.sleep = 1.0, waited.append
        with pytest.raises(UnfoldError, match=r"cloud\.provider: AWS does not respond.*cloud\.region") as caught:
            provider.recover()
        assert caught.value.code is ExitCode.USAGE
        assert sum(waited) < 60
        ledger.record_order("token", 1, 0.0)
        with pytest.raises(UnfoldError, match="cannot be listed"):
            provider.recover()
        assert sum(waited) > 240


def test_instances_that_aws_has_ended_are_found(ec2: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What AWS ends while it boots need not be awaited; without a response nothing counts as ended."""
    with open_ledger(tmp_path / "l.sqlite", MACHINE, "a") as ledger:
        provider = build_provider(ec2, ledger)
        first, second = provider.rent(2, do_nothing)
        ec2.terminate_instances(InstanceIds=[first])
        assert provider.find_ended([first, second]) == {first}
        with monkeypatch.context() as patch:
            patch.setattr(ec2, "get_paginator", Mock(side_effect=ReadTimeoutError(endpoint_url="moto")))
            assert provider.find_ended([first, second]) == set()
        provider.close()


@pytest.mark.parametrize("losses", [1, 4])
def test_losses_while_booting_move_to_the_next_zone_and_end_no_run(
    ec2: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, losses: int
) -> None:
    """However often AWS ends what boots, the run orders again, from another zone, and each loss is in the log."""
    now, lost, ready = [time.time()], list[str](), set[str]()

    def tick() -> None:
        now[0] += 8

    def boot() -> None:
        """Let AWS end what boots at first; what is ordered later joins Ray."""
        tick()
        for item in list_instances(ec2, "running"):
            if len(lost) < losses:
                ec2.terminate_instances(InstanceIds=[item["InstanceId"]])
                lost.append(item["Placement"]["AvailabilityZone"])
            else:
                ready.add(item["InstanceId"])

    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda _: boot())
    monkeypatch.setattr(ray_nodes, "time", clock)
    monkeypatch.setattr(ray_nodes, "list_alive_nodes", lambda *_: ready)
    monkeypatch.setattr(RayCluster, "_detect_device", lambda *_: "CPU")
    monkeypatch.setattr(RayCluster, "_find_broken_nodes", lambda *_: [])
    offers = list_offers(MACHINE, [MACHINE], ["us-east-1a", "us-east-1b"])
    request = replace(build_request(MACHINE, "", now[0] + 36000), offers=offers)
    with open_ledger(tmp_path / "l.sqlite", MACHINE, "a") as ledger:
        provider = AwsProvider(ec2, request, "us-east-1", ledger, wall=lambda: now[0], sleep=lambda _: tick())
        cluster = RayCluster(Mock(), 1, provider, ray_nodes.RemoteRayNodes(""))
        cluster.resize(1, tick)
        assert set(cluster.devices) == ready
        assert lost == ["us-east-1a", "us-east-1b", "us-east-1a", "us-east-1b"][:losses]
        attempts = ledger.base.execute("SELECT granted FROM capacity").fetchall()
        assert [granted for (granted,) in attempts] == [1, 0] * losses + [1]
        provider.close()
        assert ledger.count_running() == 0
        assert not list_instances(ec2, "running", "pending")


@pytest.mark.parametrize("refused", ["TerminateInstances", "DescribeInstances"])
def test_what_stays_rented_is_named(ec2: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str) -> None:
    """Where AWS refuses to the end, the error names what stays rented, and is not a fault of ours."""
    refusal = ClientError({"Error": {"Code": "RequestLimitExceeded", "Message": "no"}}, refused)
    call = "terminate_instances" if refused == "TerminateInstances" else "get_paginator"
    with open_ledger(tmp_path / "l.sqlite", MACHINE, "a") as ledger:
        provider = build_provider(ec2, ledger)
        provider.sleep = Mock()
        names = provider.rent(2, do_nothing)
        with monkeypatch.context() as patch:
            patch.setattr(ec2, call, Mock(side_effect=refusal))
            with pytest.raises(UnfoldError, match="may still run and cost money") as raised:
                provider.close()
        assert raised.value.code == ExitCode.USAGE
        assert all(name in str(raised.value) for name in names)
        provider.close()
        assert not list_instances(ec2, "running", "pending")


def test_refusals_sleep_longer_and_longer() -> None:
    """Refused offers sleep 5, 10, then 20 minutes; a grant begins anew."""
    offer = Offer(MACHINE)
    book = OfferBook((offer,))
    assert [book.record_refusal(offer, 0.0) for _ in range(4)] == [300, 600, 1200, 1200]
    assert book.select(1199.0) is None
    assert book.select(1200.0) is offer
    book.record_grant(offer)
    assert book.record_refusal(offer, 2000.0) == 2300.0


def test_offers_are_ordered_by_zone_market_and_price() -> None:
    """All zones of the planned machine come first, then its other market, then equal sizes by price per work."""
    spot = replace(MACHINE, market="spot", usd_per_hour=1.0)
    slow, quick = (
        replace(MACHINE, name="g4", speed=0.5, usd_per_hour=2.0),
        replace(MACHINE, name="g6", usd_per_hour=3.0),
    )
    large = replace(MACHINE, name="p4", accelerators=8)
    offers = list_offers(spot, [MACHINE, spot, slow, quick, large], ["a", "b"])
    names = [(offer.machine.name, offer.machine.market, offer.zone) for offer in offers[::2]]
    assert names == [
        ("g5.xlarge", "spot", "a"),
        ("g5.xlarge", "on-demand", "a"),
        ("g6", "on-demand", "a"),
        ("g4", "on-demand", "a"),
    ]


class UnreliableClient:
    """A client that runs requests for instances, but loses ``lost`` responses, or runs requests ``twice``."""

    def __init__(self, ec2: Any, lost: int, *, twice: bool = False) -> None:
        self.ec2, self.lost, self.twice = ec2, lost, twice
        self.refusals: list[str] = []
        self.requests: list[dict[str, Any]] = []
        self.max_grant = 1000
        self.garbled: list[str] = []

    def run_instances(self, **parameters: Any) -> Any:
        """Rent, and perhaps refuse or lose the response."""
        self.requests.append(dict(parameters))
        if self.garbled and not self.garbled.pop(0):
            return {"ResponseMetadata": {}}
        if self.refusals:
            code = self.refusals.pop(0)
            raise ClientError({"Error": {"Code": code, "Message": "refused"}}, "RunInstances")
        if parameters["MinCount"] > self.max_grant:
            raise ClientError({"Error": {"Code": "InsufficientInstanceCapacity", "Message": "full"}}, "RunInstances")
        parameters["MaxCount"] = min(parameters["MaxCount"], self.max_grant)
        response = self.ec2.run_instances(**parameters)
        if self.twice:
            return self.ec2.run_instances(**parameters)
        if self.lost:
            self.lost -= 1
            raise ReadTimeoutError(endpoint_url="moto")
        return response

    def get_paginator(self, name: str) -> Any:
        """Return the paginator, or fail as at a response that is not XML."""
        if self.garbled and self.garbled.pop(0) == "page":
            raise ResponseParserError("invalid XML received")
        return self.ec2.get_paginator(name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ec2, name)


TRAINABLE = TrainableConfig(function="sleeper:train", space={"ceiling": Uniform(0.0, 1.0)})


def build_config(folder: Path) -> ExecutionConfig:
    """Build a job of three stages on two, one and two instances."""
    return ExecutionConfig(
        stages=build_custom_stages([(2, 2), (1, 2), (2, 2)]),
        plan=tuple(Allocation(count, 1, count) for count in (2, 1, 2)),
        machine=MACHINE,
        profile=Profile(LogNormal(0.05)),
        trainable=TRAINABLE,
        folder=folder / "trials",
        seed=0,
        checkpoint_iters=1,
    )


def drive(folder: Path) -> None:
    """Run the job as ``train`` does, resuming an earlier attempt."""
    with RunDir(folder).locked(), open_ledger(folder / "l.sqlite", MACHINE, "a") as ledger:
        provider = build_provider(boto3.client("ec2"), ledger, folder=folder)
        ledger.close_open_parts()
        provider.recover()
        ledger.close_open_lifetimes()
        stages = build_custom_stages([(2, 6), (1, 6)])
        config = replace(build_config(folder), stages=stages, plan=(Allocation(2, 1, 2), Allocation(1, 1, 1)))
        Executor(config, ledger, LocalCluster(WorkerSetup(TRAINABLE), 1, provider)).run()


if __name__ == "__main__":
    drive(Path(sys.argv[1]))
