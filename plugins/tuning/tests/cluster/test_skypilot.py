"""Renting through SkyPilot: orders, refusals, releases and what a killed driver leaves."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from tuning_runs import SPEC, load_spec

from unfold_tuning.cluster.aws import LaunchRequest
from unfold_tuning.cluster.offers import Offer, list_offers
from unfold_tuning.cluster.orphans import check_clusters
from unfold_tuning.cluster.skypilot import (
    INFEASIBLE,
    InstalledSkyPilot,
    SkyCluster,
    SkyPilotProvider,
    SkyRequestError,
    SkyResult,
    build_script,
    find_end,
    join_zone,
)
from unfold_tuning.job.problem import LaunchConfig
from unfold_tuning.job.profile import Machine
from unfold_tuning.trial.ledger import Ledger, open_ledger
from unfold_tuning.verbs.profile import profile
from unfold_tuning.verbs.train import train
from unfoldkit.api import ExitCode, Run, RunDir, UnfoldError
from unfoldkit.engines.ray import RayEngine
from unfoldkit.run_context import Options

MACHINE = Machine("g5.xlarge", 1, 3.6)
FULL = SkyResult("ResourcesUnavailableError", "no capacity")


@dataclass(slots=True)
class FakeSky:
    """An API server with a queue: a launch takes ten seconds and the end of a cluster five.

    Attributes:
        refusals: How launches end, by offer; the others succeed.
        clusters: Those that exist, with the time of their launch.
        ended: Those that existed, with the time of their end.
        requests: Action, name, time at which it ends, and its result, by id.
        is_down: Whether the server takes no requests.
        now: The clock.
    """

    refusals: dict[str, SkyResult] = field(default_factory=dict)
    clusters: dict[str, float] = field(default_factory=dict)
    ended: dict[str, tuple[float, float]] = field(default_factory=dict)
    requests: dict[str, tuple[str, str, float, SkyResult]] = field(default_factory=dict)
    is_down: bool = False
    now: float = 100.0

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds

    def launch(self, name: str, infra: str, offer: Offer, image: str | None, script: str) -> str:
        """See ``SkyClient``."""
        self.require_up()
        assert (infra, image) == ("aws/us-east-1", "docker:it")
        assert name in script
        result = self.refusals.get(offer.name, SkyResult())
        if result.error != FULL.error:
            self.clusters[name] = self.now
        return self.add("launch", name, 10.0, result)

    def down(self, name: str) -> str:
        """See ``SkyClient``."""
        self.require_up()
        if name not in self.clusters:
            return self.add("down", name, 0.0, SkyResult("ClusterDoesNotExist"))
        self.ended[name] = self.clusters.pop(name), self.now
        return self.add("down", name, 5.0, SkyResult())

    def poll(self, request: str) -> SkyResult | None:
        """See ``SkyClient``."""
        self.require_up()
        _, _, end, result = self.requests[request]
        return result if self.now >= end else None

    def cancel_launches(self, prefix: str) -> None:
        """See ``SkyClient``."""
        self.require_up()
        for key, (action, name, end, _) in list(self.requests.items()):
            if action == "launch" and name.startswith(prefix) and self.now < end:
                self.requests[key] = (action, name, self.now, SkyResult("RequestCancelled"))

    def list_clusters(self, prefix: str) -> list[SkyCluster]:
        """See ``SkyClient``."""
        self.require_up()
        alive = [SkyCluster(name, began) for name, began in self.clusters.items()]
        ended = [SkyCluster(name, *times) for name, times in self.ended.items()]
        return [cluster for cluster in (*alive, *ended) if cluster.name.startswith(prefix)]

    def require_up(self) -> None:
        """Require that the server takes requests."""
        if self.is_down:
            raise SkyRequestError(SkyResult("ApiServerConnectionError", "connection refused"))

    def add(self, action: str, name: str, seconds: float, result: SkyResult) -> str:
        """Add a request that takes some seconds."""
        self.requests[str(len(self.requests))] = (action, name, self.now + seconds, result)
        return str(len(self.requests) - 1)

    def count(self, action: str) -> int:
        """Count the requests of a kind."""
        return sum(request[0] == action for request in self.requests.values())


@pytest.fixture
def sky() -> FakeSky:
    """Return a server without clusters."""
    return FakeSky()


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """Open a ledger."""
    with open_ledger(tmp_path / "l.sqlite", MACHINE, "a") as opened:
        yield opened


def build_provider(sky: FakeSky, ledger: Ledger, *machines: Machine) -> SkyPilotProvider:
    """Build a provider of the given machines, in the order of their offers, on the fake's clock."""
    offers = list_offers(machines[0], machines, ()) if machines else ()
    request = LaunchRequest(
        machine=machines[0] if machines else MACHINE,
        launch=LaunchConfig(image="docker:it", setup="pip install it"),
        head_address="10.0.0.1:6379",
        folder="",
        expires_at=7300.0,
        offers=offers,
    )
    return SkyPilotProvider(sky, request, "aws/us-east-1", ledger, wall=lambda: sky.now, sleep=sky.sleep)


def ignore() -> None:
    """Watch nothing."""


def test_nodes_are_clusters_that_start_side_by_side(sky: FakeSky, ledger: Ledger) -> None:
    """Orders precede requests, a node is billed from its request, and its bill ends when its end is requested."""
    provider, watched = build_provider(sky, ledger), []
    names = provider.rent(3, lambda: watched.append(sky.now))
    assert sky.now < 115, "not one after another"
    assert len(watched) > 20
    assert names == [order.token for order in ledger.list_orders()] == list(sky.clusters)
    assert all(name.startswith(provider.prefix) for name in names)
    assert [lifetime.since for lifetime in ledger.list_lifetimes()] == [100.0] * 3
    sky.now = 200.0
    provider.release(names[0])
    assert [lifetime.until for lifetime in ledger.list_lifetimes()] == [200.0, None, None]
    provider.close()
    assert not sky.clusters
    assert ledger.count_running() == 0


def test_a_refusal_moves_on_to_the_next_offer(sky: FakeSky, ledger: Ledger) -> None:
    """Where there is no capacity, the next offer is tried, and the first again later; nothing is billed for it."""
    large = replace(MACHINE, name="g5.2xlarge", usd_per_hour=5.0)
    sky.refusals["g5.xlarge on-demand"] = FULL
    provider = build_provider(sky, ledger, MACHINE, large)
    assert len(provider.rent(2, ignore)) == 2
    assert {lifetime.price for lifetime in ledger.list_lifetimes()} == {5.0}
    sky.refusals.clear()
    sky.now += 301
    provider.rent(1, ignore)
    assert ledger.list_lifetimes()[-1].price == 3.6


def test_a_thrifty_run_uses_spot_until_on_demand_is_allowed(sky: FakeSky, ledger: Ledger) -> None:
    """A node that is not required is not awaited."""
    sky.refusals["g5.xlarge spot"] = FULL
    provider = build_provider(sky, ledger, replace(MACHINE, market="spot"), MACHINE)
    provider.book.is_on_demand_allowed = False
    assert provider.rent(1, ignore, is_required=False) == []
    assert not provider.can_rent()
    provider.allow_on_demand()
    assert len(provider.rent(1, ignore, is_required=False)) == 1


@pytest.mark.parametrize("error", [INFEASIBLE, "NoCloudAccessError", "ValueError"])
def test_what_can_never_be_granted_ends_the_run(sky: FakeSky, ledger: Ledger, error: str) -> None:
    """The error has SkyPilot's reason and exit code 2."""
    sky.refusals["g5.xlarge on-demand"] = SkyResult(error, "no")
    with pytest.raises(
        UnfoldError, match=rf"SkyPilot refused every offer: {error} for g5.xlarge .*sky check"
    ) as raised:
        build_provider(sky, ledger).rent(2, ignore)
    assert raised.value.code == ExitCode.USAGE
    assert not sky.clusters
    assert ledger.count_running() == 0


def test_an_offer_that_fails_thrice_in_a_row_ends(sky: FakeSky, ledger: Ledger) -> None:
    """Each time an instance may have run, so that it is not tried until the run expires."""
    sky.refusals["g5.xlarge on-demand"] = SkyResult("RuntimeError", "Ray did not start")
    with pytest.raises(UnfoldError, match="refused every offer: RuntimeError"):
        build_provider(sky, ledger).rent(1, ignore)
    assert sky.count("launch") == 3
    assert not sky.clusters


def test_a_launch_that_fails_late_is_billed_and_ended(sky: FakeSky, ledger: Ledger) -> None:
    """SkyPilot keeps an instance that it could not set up."""
    sky.refusals["g5.xlarge on-demand"] = SkyResult("ClusterSetUpError", "rsync failed")
    provider = build_provider(sky, ledger)
    assert provider.rent(1, ignore, is_required=False) == []
    assert not sky.clusters
    assert [(life.since, life.until) for life in ledger.list_lifetimes()] == [(100.0, pytest.approx(110.5))]


def test_an_interrupted_wait_leaves_nothing(sky: FakeSky, ledger: Ledger) -> None:
    """Ctrl-C, or the cap, cancels launches that go on, and ends and bills what exists."""

    def interrupt() -> None:
        if sky.now > 104:
            raise KeyboardInterrupt

    provider = build_provider(sky, ledger)
    with pytest.raises(KeyboardInterrupt):
        provider.rent(2, interrupt)
    provider.close()
    assert not sky.clusters
    assert {request[3].error for request in sky.requests.values() if request[0] == "launch"} == {"RequestCancelled"}
    assert len(ledger.list_lifetimes()) == 2
    assert ledger.count_running() == 0


def test_the_next_attempt_ends_what_a_killed_driver_left(sky: FakeSky, ledger: Ledger) -> None:
    """A node, a launch that goes on, and a cluster that has ended by itself are found, and billed to their ends."""
    killed = build_provider(sky, ledger)
    names = killed.rent(2, ignore)
    sky.ended[names[1]] = sky.clusters.pop(names[1]), 150.0
    launched = f"{killed.prefix}2"
    sky.launch(launched, "aws/us-east-1", Offer(MACHINE), "docker:it", launched)
    sky.clusters["unfold-other-1"] = 0.0
    sky.now += 5.0
    now = sky.now
    provider = build_provider(sky, ledger)
    provider.recover()
    assert list(sky.clusters) == ["unfold-other-1"]
    assert sky.now >= now + 5.0, "clusters that are being ended take room"
    ends = {lifetime.id: (lifetime.since, lifetime.until) for lifetime in ledger.list_lifetimes()}
    assert ends == {names[0]: (100.0, now), names[1]: (100.0, 150.0), launched: (now - 5.0, now)}


def test_doctor_finds_clusters_that_a_run_has_left(
    sky: FakeSky, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster of a run in this folder without a driver is an orphan; one with a living driver is not."""
    monkeypatch.chdir(tmp_path)
    assert check_clusters(sky).ok
    with RunDir(Path("runs/t")).locked(), open_ledger(Path("runs/t/ledger.sqlite"), MACHINE, "a") as ledger:
        provider = build_provider(sky, ledger)
        names = provider.rent(1, ignore)
        assert check_clusters(sky).ok
    sky.clusters["unfold-of-another-machine-0"] = 0.0
    result = check_clusters(sky)
    assert not result.ok
    assert result.message == f"left running and billed: {names[0]} (run runs/t)"
    assert result.hint.endswith(f"sky down {names[0]}")
    sky.down(names[0])
    assert check_clusters(sky).ok
    sky.is_down = True
    assert "connection refused" in check_clusters(sky).message


def test_an_end_that_fails_is_requested_again(sky: FakeSky, ledger: Ledger) -> None:
    """A node stays on the bill until the server takes its end; what may still run at the end is an error."""
    provider = build_provider(sky, ledger)
    names = provider.rent(2, ignore)
    sky.is_down = True
    provider.release(names[0])
    assert ledger.count_running() == 2
    with pytest.raises(UnfoldError, match=rf"may still run .*sky down {names[0]} {names[1]}"):
        provider.close()
    sky.is_down = False
    provider.close()
    assert ledger.count_running() == len(sky.clusters) == 0


def test_an_unreachable_server_is_an_error_before_anything_is_rented(sky: FakeSky, ledger: Ledger) -> None:
    """The error has exit code 2, and shows which command checks the server."""
    sky.is_down = True
    with pytest.raises(
        UnfoldError, match=r"SkyPilot does not respond: ApiServerConnectionError.*sky api info"
    ) as error:
        build_provider(sky, ledger).recover()
    assert error.value.code == ExitCode.USAGE


def test_a_job_joins_by_its_name_and_ends_with_the_run(tmp_path: Path) -> None:
    """Ray's variables are those of SkyPilot, so they go before the setup; a raylet that does not start has three."""
    for name, text in {"timeout": 'echo "$1"; shift; "$@"', "ray": 'env; printf "%s\\n" "$@"; exit 1'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    launch = LaunchConfig(setup="export RAY_AUTH_MODE=token")
    request = LaunchRequest(machine=MACHINE, launch=launch, head_address="h:1", folder="", expires_at=7300.0)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "RAY_ADDRESS": "theirs"}
    script = build_script(request, "unfold-a-0", 100.0)
    command = ["/bin/sh", "-c", script]
    lines = subprocess.run(command, env=environment, check=False, capture_output=True, text=True).stdout.splitlines()
    assert [int(line) for line in lines if line.isdigit()] == [pytest.approx(7200, abs=30)] * 3
    assert lines.count('--resources={"unfold-unfold-a-0": 1.0}') == lines.count("--address=h:1") == 3
    assert "RAY_AUTH_MODE=token" in lines
    assert "RAY_ADDRESS=theirs" not in lines


@pytest.mark.parametrize(
    ("infra", "zone", "joined"),
    [
        ("gcp", None, "gcp"),
        ("gcp", "us-east1-b", "gcp/*/us-east1-b"),
        ("aws/us-east-1", "us-east-1a", "aws/us-east-1/us-east-1a"),
        ("*/us-east-1", "us-east-1a", "*/us-east-1/us-east-1a"),
    ],
)
def test_zones_are_written_as_skypilot_does(infra: str, zone: str | None, joined: str) -> None:
    """Cloud, region and zone, of which any may be open."""
    assert join_zone(infra, zone) == joined


@pytest.mark.parametrize(
    ("intervals", "end"), [([(5, 9), (12, 20)], 20.0), ([(5, None)], 5.0), ([], 3.0)], ids=["ended", "open", "never up"]
)
def test_a_cluster_ends_with_its_last_use(intervals: Any, end: float) -> None:
    """SkyPilot's history has an interval of use for each time that a cluster was up."""
    assert find_end({"launched_at": 3, "usage_intervals": intervals}) == end


class ResourcesUnavailableError(Exception):
    """What SkyPilot raises, with the refusals that it met."""

    def __init__(self, text: str, history: list[Exception]) -> None:
        super().__init__(text)
        self.failover_history = history


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """Stand in for the module of SkyPilot, where it is not installed."""
    stub = Mock()
    monkeypatch.setitem(sys.modules, "sky", stub)
    return stub


def test_a_launch_names_type_market_and_zone(module: Mock) -> None:
    """A cluster ends by itself some minutes after its job."""
    offer = Offer(replace(MACHINE, market="spot"), "us-east-1a")
    module.launch.return_value = "id"
    assert InstalledSkyPilot().launch("n", "aws/us-east-1", offer, "docker:it", "run") == "id"
    infra = "aws/us-east-1/us-east-1a"
    module.Resources.assert_called_once_with(
        infra=infra, instance_type="g5.xlarge", use_spot=True, image_id="docker:it"
    )
    task = module.Task.return_value
    module.launch.assert_called_once_with(task, cluster_name="n", idle_minutes_to_autostop=5, down=True)


@pytest.mark.parametrize(
    ("status", "error", "result"),
    [
        ("RUNNING", None, None),
        ("SUCCEEDED", None, SkyResult()),
        ("FAILED", ResourcesUnavailableError("\x1b[31mfull\x1b[0m\nmore", [ValueError()]), replace(FULL, text="full")),
        ("FAILED", ResourcesUnavailableError("no such type", []), SkyResult(INFEASIBLE, "no such type")),
        ("CANCELLED", RuntimeError(), SkyResult("RuntimeError")),
    ],
)
def test_a_request_ends_with_its_first_line(
    module: Mock, status: str, error: Exception | None, result: SkyResult | None
) -> None:
    """Without colours; what no enabled cloud has is no lack of capacity."""
    module.api_status.return_value = [SimpleNamespace(status=status)]
    module.get.side_effect = error
    assert InstalledSkyPilot().poll("id") == result


def test_launches_and_clusters_are_found_by_their_prefix(module: Mock, capsys: pytest.CaptureFixture[str]) -> None:
    """Those of other runs, and other requests, are left alone; what SkyPilot prints is not in the report."""
    names = [("1", "sky.launch", "u-1"), ("2", "sky.down", "u-1"), ("3", "sky.launch", "v-1"), ("4", "sky.check", None)]
    module.api_status.return_value = [
        SimpleNamespace(request_id=key, name=name, cluster_name=cluster) for key, name, cluster in names
    ]
    module.status.return_value = [{"name": "u-1", "launched_at": 5}, {"name": "v-1", "launched_at": 5}]
    ended = {"name": "u-0", "launched_at": 1, "usage_intervals": [(1, 4)]}
    module.cost_report.return_value = [ended, {"name": "u-1", "launched_at": 5, "usage_intervals": [(5, None)]}]

    def get(request: Any) -> Any:
        sys.stdout.write("talk")
        return request

    module.get.side_effect = get
    InstalledSkyPilot().cancel_launches("u-")
    module.api_cancel.assert_called_once_with(["1"], silent=True)
    clusters = InstalledSkyPilot().list_clusters("u-")
    assert sorted(clusters, key=lambda cluster: cluster.name) == [SkyCluster("u-0", 1, 4), SkyCluster("u-1", 5)]
    assert capsys.readouterr().out == ""


SKY_SPEC = SPEC.replace("provider: local", "provider: skypilot")


@pytest.mark.parametrize("verb", [train, profile])
@pytest.mark.parametrize("address", [None, "10.0.0.1:6379"])
def test_a_run_needs_skypilot_and_a_head(
    tmp_path: Path, verb: Any, address: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without one of them, nothing is trained and nothing is measured on this machine in its place."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    options: Options = {"on": "p"} if verb is profile else {}
    run = Run(directory=RunDir(tmp_path), engine=RayEngine(address), allow_code=True, options=options)
    expected = r"'skypilot', which is not installed" if address else r"no address is given .*--ray-address HOST:6379"
    with pytest.raises(UnfoldError, match=expected) as error:
        verb(load_spec(SKY_SPEC), run)
    assert error.value.code == ExitCode.USAGE


# against an API server

RENT_WITHOUT_CLOUDS = """
import sys, time
from pathlib import Path
import test_skypilot as t
with t.open_ledger(Path(sys.argv[1]) / "l.sqlite", t.MACHINE, "a") as ledger:
    request = t.LaunchRequest(
        machine=t.replace(t.MACHINE, name="1CPU--1GB"), launch=t.LaunchConfig(), head_address="127.0.0.1:1",
        folder="", expires_at=time.time() + 600,
    )
    provider = t.SkyPilotProvider(t.InstalledSkyPilot(), request, "kubernetes", ledger)
    try:
        provider.recover()
        provider.rent(1, t.ignore)
    except t.UnfoldError as error:
        print(error)
    finally:
        provider.close()
        import sky
        sky.api_stop()
    assert ledger.count_running() == 0
"""


@pytest.mark.e2e
@pytest.mark.skipif(importlib.util.find_spec("sky") is None, reason="SkyPilot is not installed")
def test_an_api_server_without_clouds_refuses(tmp_path: Path) -> None:
    """The client starts a server, which has no credentials here; its refusal is the reason that the run ends with."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {
        **{key: value for key, value in os.environ.items() if key != "KUBECONFIG"},
        "HOME": str(tmp_path),
        "SKY_RUNTIME_DIR": str(tmp_path),
        "SKYPILOT_API_SERVER_LOCAL_PORT": port,
        "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])]),
    }
    command = [sys.executable, "-c", RENT_WITHOUT_CLOUDS, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "SkyPilot refused every offer: NoCloudAccessError for 1CPU--1GB on-demand" in done.stdout
