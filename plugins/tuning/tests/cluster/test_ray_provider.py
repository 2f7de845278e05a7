"""Nodes of a running Ray cluster: waiting for its autoscaler, and sharing it with others."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tuning_runs import SPEC, load_spec, read_nodes

from unfold_tuning.cluster import ray_nodes
from unfold_tuning.cluster.ray import RayCluster
from unfold_tuning.cluster.ray_nodes import RemoteRayNodes
from unfold_tuning.cluster.ray_provider import START_TIMEOUT_S, RayProvider, SharedNode
from unfold_tuning.job.problem import TrainableConfig
from unfold_tuning.job.profile import Machine
from unfold_tuning.trial.ledger import Ledger, open_ledger
from unfold_tuning.trial.trainable import WorkerSetup
from unfold_tuning.verbs.profile import profile
from unfold_tuning.verbs.train import train
from unfoldkit.api import ExitCode, Run, RunDir, UnfoldError
from unfoldkit.engines.ray import RayEngine
from unfoldkit.run_context import Options

HEAD = SharedNode("head", 4, 4, is_head=True)


@dataclass(slots=True)
class FakeRay:
    """An autoscaler that adds a node of four GPUs a second, up to a limit, and the clock.

    Attributes:
        nodes: The nodes of the cluster.
        limit: How many nodes it adds.
        requests: Bundles of each request.
        taken: Nodes that other work takes at the moment at which they are reserved.
        groups: Nodes by placement group.
        now: The clock.
    """

    nodes: dict[str, SharedNode] = field(default_factory=lambda: {"head": HEAD})
    limit: int = 8
    requests: list[int] = field(default_factory=list)
    taken: set[str] = field(default_factory=set)
    groups: dict[str, str] = field(default_factory=dict)
    now: float = 0.0

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds
        places = sum(int(node.total // 4) for node in self.nodes.values())
        if self.requests and self.requests[-1] > places and self.limit and self.now % 1.0 < seconds:
            self.limit -= 1
            self.nodes[f"added-{self.limit}"] = SharedNode(f"added-{self.limit}", 4, 4)

    def list_nodes(self, resource: str) -> list[SharedNode]:
        """See ``RayClient``."""
        assert resource == "GPU"
        return list(self.nodes.values())

    def request(self, bundles: Sequence[dict[str, float]]) -> None:
        """See ``RayClient``."""
        assert all(bundle == {"GPU": 4.0} for bundle in bundles)
        self.requests.append(len(bundles))

    def reserve(self, node_id: str, bundle: dict[str, float]) -> Any:
        """See ``RayClient``."""
        self.nodes[node_id] = SharedNode(node_id, 4, 4 - bundle["GPU"])
        if node_id in self.taken:
            return None
        self.groups[f"group of {node_id}"] = node_id
        return f"group of {node_id}"

    def free(self, group: Any) -> None:
        """See ``RayClient``."""
        node_id = self.groups.pop(group)
        self.nodes[node_id] = SharedNode(node_id, 4, 4)


@pytest.fixture
def ray() -> FakeRay:
    """Return a cluster of which only the head runs."""
    return FakeRay()


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """Open a ledger."""
    with open_ledger(tmp_path / "l.sqlite", Machine("node", 4, 3.6), "a") as opened:
        yield opened


@pytest.fixture
def provider(ray: FakeRay, ledger: Ledger) -> RayProvider:
    """Return a provider of nodes with four GPUs."""
    return RayProvider(3.6, 4, "GPU", ledger, ray, wall=lambda: ray.now, clock=lambda: ray.now, sleep=ray.sleep)


def ignore() -> None:
    """Watch nothing."""


def test_nodes_are_requested_reserved_and_billed_until_they_are_released(
    ray: FakeRay, provider: RayProvider, ledger: Ledger
) -> None:
    """Two nodes are billed once they are there; the request beside the head's own room ends with the wait."""
    names = provider.rent(2, ignore)
    assert ray.requests == [3, 0]
    assert sorted(ray.groups.values()) == ["added-6", "added-7"]
    ray.now = 100.0
    provider.release(names[0])
    assert [lifetime.until for lifetime in ledger.list_lifetimes()] == [100.0, None]
    assert len(ray.groups) == 1
    assert provider.rent(1, ignore) != names[:1], "a new lifetime"
    assert ray.requests == [3, 0, 0], "the node is still there"
    provider.close()
    assert ledger.count_running() == len(ray.groups) == 0


def test_nodes_of_others_stay_theirs(ray: FakeRay, provider: RayProvider) -> None:
    """Neither a busy node, nor one of another size, nor the head, nor one that is just being taken is used."""
    nodes = [SharedNode("busy", 4, 3), SharedNode("large", 8, 8), SharedNode("small", 2, 2), SharedNode("next", 4, 4)]
    ray.nodes |= {node.id: node for node in nodes}
    ray.taken = {"next"}
    provider.rent(1, ignore)
    assert list(ray.groups.values()) == ["added-7"]
    # the autoscaler would take the room of the head (1), busy (1), large (2) and next (1) for what was requested
    assert ray.requests == [6, 0]


def test_what_is_not_granted_in_time_is_requested_again_later(ray: FakeRay, provider: RayProvider) -> None:
    """A part of the nodes is no error, and the run is watched meanwhile; the rest is awaited for a shorter time."""
    ray.limit, watched = 1, []
    assert len(provider.rent(3, lambda: watched.append(ray.now))) == 1
    assert START_TIMEOUT_S <= ray.now < START_TIMEOUT_S + 2
    assert len(watched) > 4 * START_TIMEOUT_S, "several times a second"
    assert ray.requests[-1] == 0
    assert not provider.can_rent()
    ray.now += 300.0
    assert provider.can_rent()
    began = ray.now
    assert provider.rent(2, ignore, is_required=False) == []
    assert ray.now - began < 62
    ray.limit, ray.now = 2, ray.now + 300.0
    assert len(provider.rent(2, ignore, is_required=False)) == 2
    assert provider.can_rent()


def test_a_cluster_without_such_nodes_is_an_error(ray: FakeRay, provider: RayProvider) -> None:
    """The error says how long nodes were awaited and which there are, and leaves no request."""
    ray.nodes["large"], ray.limit = SharedNode("large", 8, 8), 0
    with pytest.raises(UnfoldError, match=r"no unused node with 4 GPU in 10 minutes; its nodes have 8 .*ray status"):
        provider.rent(1, ignore)
    assert ray.requests[-1] == 0


def test_an_interrupted_wait_leaves_nothing(ray: FakeRay, provider: RayProvider, ledger: Ledger) -> None:
    """Ctrl-C while the second node is awaited frees the first one, and withdraws the request."""
    ray.limit = 1

    def interrupt() -> None:
        if ray.now > 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        provider.rent(2, interrupt)
    assert ray.requests[-1] == ledger.count_running() == len(ray.groups) == 0
    assert len(ledger.list_lifetimes()) == 1


def test_the_request_of_a_killed_attempt_is_withdrawn(ray: FakeRay, provider: RayProvider, ledger: Ledger) -> None:
    """The next attempt may find the nodes that it needs, and still ends the request that brought them."""
    ray.nodes["added"] = SharedNode("added", 4, 4)
    ledger.record_order("killed", 2, 0.0)
    assert len(provider.rent(1, ignore)) == 1
    assert ray.requests == [0]


def test_a_dead_node_is_lost_and_no_longer_billed(
    ray: FakeRay, provider: RayProvider, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reservation of a node that Ray considers dead is freed, and the others stay."""
    names = provider.rent(2, ignore)
    alive = provider.reservations[names[1]].node_id
    nodes = [{"NodeID": alive, "Alive": True, "NodeManagerAddress": "a", "Resources": {"GPU": 4.0}}]
    module = SimpleNamespace(nodes=lambda: nodes, get_runtime_context=lambda: SimpleNamespace(gcs_address=""))
    monkeypatch.setattr(ray_nodes, "import_ray", lambda: module)
    held = provider.reservations
    setup = WorkerSetup(TrainableConfig(function="sleeper:train", space={}))
    cluster = RayCluster(setup, 4, provider, RemoteRayNodes("", held), reservations=held)
    cluster.devices |= dict.fromkeys(names, "GPU")
    assert [(event.node, event.trial, event.message) for event in cluster.poll_events(0)] == [(names[0], -1, None)]
    assert list(held) == list(cluster.devices) == names[1:]
    assert list(ray.groups.values()) == [alive]
    assert ledger.count_running() == 1


SHARED_SPEC = SPEC.replace("provider: local", "provider: ray, resource: CPU")


@pytest.mark.parametrize("verb", [train, profile])
def test_a_run_needs_the_address_of_the_cluster(tmp_path: Path, verb: Any) -> None:
    """Without it, nothing is trained and nothing is measured on this machine in its place."""
    options: Options = {"on": "p"} if verb is profile else {}
    run = Run(directory=RunDir(tmp_path), engine=RayEngine(), allow_code=True, options=options)
    with pytest.raises(UnfoldError, match=r"no address is given .*--engine ray --ray-address HOST:6379") as error:
        verb(load_spec(SHARED_SPEC), run)
    assert error.value.code == ExitCode.USAGE


# on a real cluster

WITH_RAY = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
ENVIRONMENT = {"RAY_AUTH_MODE": "disabled"}
READ_REQUEST = """
import sys
from ray._raylet import GcsClient
print((GcsClient(address=sys.argv[1]).internal_kv_get(b"autoscaler_resource_request", None) or b"[]").decode())
"""
TWO_THEN_ONE = """
version: 1
kind: tuning
name: t
search: {algorithm: successive-halving, trials: 4, min_iters: 8, max_iters: 32, eta: 4}
trainable: {function: "sleeper:train", space: {ceiling: {uniform: [0, 1]}}}
deadline: 55 min
cloud: {provider: ray, resource: CPU, instances: [{type: p, accelerators: 1, price: $3.6/h}], limit: 2}
profile: {iteration: {mean: 75 s}, provision: {mean: 0 s}, startup: {mean: 1 s}, sync: {mean: 0 s}, error: 0%}
samples: 100
"""


@dataclass(frozen=True, slots=True)
class AutoscalingHead:
    """The head of a cluster, and the file in which the trainables of ``sleeper`` record their iterations there."""

    address: str
    log: Path


@pytest.fixture(scope="module")
def autoscaling_head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AutoscalingHead]:
    """Start a head whose autoscaler adds raylets of one CPU to this machine.

    ``ray.cluster_utils.AutoscalingCluster`` would stop every other Ray cluster of this machine.
    """
    # Ray's sockets do not fit into the paths of pytest
    folder = tmp_path_factory.mktemp("ray")
    temp = Path("/tmp") / f"unfold-{os.getpid()}"  # noqa: S108 - removed below
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    worker = {"resources": {"CPU": 1, "object_store_memory": 80 * 2**20}, "node_config": {}, "max_workers": 3}
    head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    flags = ("use_node_id_as_ip", "disable_node_updaters", "disable_launch_config_check")
    config = {
        "cluster_name": "unfold",
        "max_workers": 3,
        "idle_timeout_minutes": 0.1,
        "provider": {"type": "fake_multinode", "gcs_address": address} | dict.fromkeys(flags, True),
        "available_node_types": {"ray.head.default": head, "worker": worker},
        "head_node_type": "ray.head.default",
        "file_mounts_sync_continuously": False,
        **{f"{part}_commands": [] for part in ("initialization", "setup", "head_setup", "worker_setup")},
        **{f"{part}_start_ray_commands": [] for part in ("head", "worker")},
        **{name: {} for name in ("auth", "docker", "file_mounts")},
        **{name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
    }
    (folder / "cluster.json").write_text(json.dumps(config))
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=0"),
        *("--disable-usage-stats", "--include-dashboard=false", f"--object-store-memory={80 * 2**20}"),
        *(f"--autoscaling-config={folder}/cluster.json", f"--temp-dir={temp}", f"--port={address.split(':')[1]}"),
        "--node-ip-address=127.0.0.1",
    ]
    # the workers of its raylets inherit this
    imports = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = _build_environment() | {"PYTHONPATH": imports, "SLEEPER_LOG": str(folder / "log")}
    environment |= {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    with (folder / "out").open("w") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)
    try:
        _wait_until(lambda: "block forever" in (folder / "out").read_text() or process.poll() is not None)
        assert process.poll() is None, (folder / "out").read_text()
        yield AutoscalingHead(address, folder / "log")
    finally:
        process.terminate()
        process.wait()
        _kill_raylets(temp)
        shutil.rmtree(temp, ignore_errors=True)


@pytest.mark.ray
@WITH_RAY
def test_a_cluster_grows_and_shrinks_with_the_plan(autoscaling_head: AutoscalingHead, tmp_path: Path) -> None:
    """Two nodes, then one, are added, used and given back; the request does not outlast the run."""
    (tmp_path / "t.yaml").write_text(TWO_THEN_ONE)
    ended = subprocess.run(
        _train_command(tmp_path, autoscaling_head.address),
        env=_build_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert len(set(autoscaling_head.log.read_text().splitlines())) == 4 * 8 + 24
    with contextlib.closing(sqlite3.connect(tmp_path / "run/ledger.sqlite")) as base:
        parts = base.execute("SELECT DISTINCT stage, node FROM parts").fetchall()
    assert Counter(stage for stage, _ in parts) == {0: 2, 1: 1}
    nodes = read_nodes(tmp_path)
    assert len(nodes) == 2
    assert all(until for *_, until in nodes)
    # the node that the second stage does not need is given back before it
    assert min(until or 0.0 for *_, until in nodes) < max(until or 0.0 for *_, until in nodes) - 0.5
    assert _read_request(autoscaling_head.address) == []


@pytest.mark.ray
@WITH_RAY
def test_a_run_that_is_terminated_while_it_waits_leaves_no_request(
    autoscaling_head: AutoscalingHead, tmp_path: Path
) -> None:
    """SIGTERM while the autoscaler is asked for nodes of a size that it does not have ends the request."""
    (tmp_path / "t.yaml").write_text(TWO_THEN_ONE.replace("accelerators: 1", "accelerators: 2"))
    command = _train_command(tmp_path, autoscaling_head.address)
    with subprocess.Popen(command, env=_build_environment(), stderr=subprocess.PIPE) as driver:
        _wait_until(lambda: bool(_read_request(autoscaling_head.address)) or driver.poll() is not None)
        assert driver.poll() is None, driver.communicate()
        assert _read_request(autoscaling_head.address)[0] == {"CPU": 2}
        driver.send_signal(signal.SIGTERM)
        assert driver.wait() == 143
    assert _read_request(autoscaling_head.address) == []
    assert read_nodes(tmp_path) == []


def _train_command(folder: Path, address: str) -> list[str]:
    options = ["--run", str(folder / "run"), "--engine", "ray", "--ray-address", address, "--allow-code"]
    return [sys.executable, "-m", "unfoldkit", "train", str(folder / "t.yaml"), *options]


def _build_environment() -> dict[str, str]:
    return os.environ | ENVIRONMENT


def _read_request(address: str) -> list[dict[str, float]]:
    """Read the request that the autoscaler acts on, without connecting to the cluster."""
    query = subprocess.run(
        [sys.executable, "-c", READ_REQUEST, address],
        env=_build_environment(),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return list(json.loads(query.stdout))


def _kill_raylets(temp: Path) -> None:
    """Kill what the autoscaler has started: it is not ended with the head, and names the head's folder."""
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"{temp}/".encode() in (path / "cmdline").read_bytes():
                os.kill(int(path.name), signal.SIGKILL)


def _wait_until(done: Callable[[], bool]) -> None:
    began = time.monotonic()
    while not done():
        assert time.monotonic() - began < 200, "waited in vain"
        time.sleep(0.2)
