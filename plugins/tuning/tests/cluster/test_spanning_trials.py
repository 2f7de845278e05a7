"""Trials that span nodes: their ranks, on local processes and on Ray, and what a lost node costs."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from unfold_tuning.cluster.interface import Cluster
from unfold_tuning.cluster.local import LocalCluster
from unfold_tuning.cluster.provider import build_local_provider
from unfold_tuning.cluster.ray import RayCluster
from unfold_tuning.cluster.ray_nodes import LocalRayNodes
from unfold_tuning.executor.executor import Executor
from unfold_tuning.executor.inputs_and_outcome import ExecutionConfig
from unfold_tuning.job.allocation import Allocation
from unfold_tuning.job.problem import TrainableConfig
from unfold_tuning.job.profile import LogNormal, Machine, Profile
from unfold_tuning.job.schedule import build_custom_stages
from unfold_tuning.job.search_space import Categorical
from unfold_tuning.trial.ledger import open_ledger
from unfold_tuning.trial.process_group import build_ranks
from unfold_tuning.trial.trainable import WorkerSetup
from unfoldkit.catalog.billing import Billing

NODE = Machine("p", 1, 3600.0, max_instances=2, billing=Billing(0.0, 0.0))
PROFILE = Profile(LogNormal(0.05), ((1, 1.0),), ((2, 1.5),))
ITERS = 4


def test_ranks_fill_the_hosts_in_order() -> None:
    """Five processes on hosts of four: a rank each, a local rank on its host, and one rendezvous for all of them."""
    ranks = build_ranks(5, 4, ["10.0.0.1", "10.0.0.2"], 4242)
    assert [(rank.rank, rank.local_rank, rank.local_world_size, rank.host) for rank in ranks] == [
        (0, 0, 4, 0), (1, 1, 4, 0), (2, 2, 4, 0), (3, 3, 4, 0), (4, 0, 1, 1),
    ]  # fmt: skip
    assert ranks[4].build_environment() == {
        "RANK": "4", "WORLD_SIZE": "5", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "GROUP_RANK": "1",
        "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "4242", "UNFOLD_HOSTS": "10.0.0.1,10.0.0.2",
    }  # fmt: skip


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param("local", marks=pytest.mark.torch),
        pytest.param("ray", marks=[
            pytest.mark.ray,
            pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
            pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning"),
            pytest.mark.filterwarnings("ignore::DeprecationWarning"),
            pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
        ]),
    ],
)  # fmt: skip
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")
def test_a_trial_reduces_over_two_nodes_and_survives_one(
    engine: str, tmp_path: Path, sleeper_log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ranks sum a value; when the node of one is lost, both restart from the last checkpoint on a new node."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "300")
    monkeypatch.setenv("RAY_worker_niceness", "0")
    space = {"by": Categorical(("torch" if engine == "local" else "sockets",))}
    trainable = TrainableConfig(function="sleeper:reducing", space=space, span=2)
    config = ExecutionConfig(
        stages=build_custom_stages([(1, ITERS)]),
        plan=(Allocation(2, 2, 1),),
        machine=NODE,
        profile=PROFILE,
        trainable=trainable,
        folder=tmp_path / "trials",
        seed=0,
        checkpoint_iters=1,
        deadline_s=600.0,
        is_replanning=False,
    )
    with open_ledger(tmp_path / "l.sqlite", NODE, "a") as ledger:
        provider, setup = build_local_provider(ledger, 3600.0), WorkerSetup(trainable)
        cluster: Cluster = LocalCluster(setup, 1, provider)
        if engine == "ray":
            cluster = RayCluster(setup, 1, provider, LocalRayNodes(1))
        outcome = Executor(config, ledger, cluster).run()
        assert outcome.winner is not None
        assert (outcome.winner.iters, outcome.winner.metric) == (ITERS, 1 + 2)
        assert outcome.lost_nodes >= 1
        assert len(ledger.list_lifetimes()) >= 3
    lines = [line.split() for line in sleeper_log.read_text().splitlines()]
    assert {(line[1], line[2], line[3], line[5]) for line in lines} == {("0", "2", "0", "0"), ("1", "2", "0", "1")}
    assert all(len(line[6].split(",")) == 2 for line in lines)
    # the step of the loss is repeated unless its checkpoint was stored first
    assert sorted(line[0] for line in lines if line[1] == "1") in [list("0123"), list("01223")]
