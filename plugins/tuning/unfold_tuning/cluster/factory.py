"""Builds the node provider and the cluster that a spec's provider and the engine of the run call for."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Sequence

from unfold_tuning.cluster.aws import AwsProvider, LaunchRequest, make_ec2_client
from unfold_tuning.cluster.interface import Cluster
from unfold_tuning.cluster.local import LocalCluster
from unfold_tuning.cluster.offers import list_offers
from unfold_tuning.cluster.provider import NodeProvider, build_local_provider
from unfold_tuning.cluster.ray import RayCluster
from unfold_tuning.cluster.ray_nodes import LocalRayNodes, RemoteRayNodes
from unfold_tuning.cluster.ray_provider import ConnectedRay, RayProvider
from unfold_tuning.cluster.skypilot import InstalledSkyPilot, SkyPilotProvider
from unfold_tuning.job.problem import ClusterConfig, LaunchConfig
from unfold_tuning.job.profile import Machine
from unfold_tuning.trial.ledger import Ledger
from unfold_tuning.trial.trainable import WorkerSetup
from unfoldkit.api import require_packages, user_error


def build_provider(
    config: ClusterConfig, machine: Machine, ledger: Ledger, log: logging.Logger, machines: Sequence[Machine] = ()
) -> NodeProvider:
    """Build the provider of nodes: this machine, a running Ray cluster, AWS, or any cloud through SkyPilot.

    Args:
        config: Where nodes come from.
        machine: The instance type.
        ledger: Records the nodes and their bill.
        log: Receives warnings.
        machines: All machines that may take the place of the planned one.

    Raises:
        UnfoldError: The spec lacks something that AWS needs, no Ray cluster is named, or SkyPilot is missing.
    """
    if config.provider == "local":
        return build_local_provider(ledger, machine.usd_per_hour)
    if config.provider == "ray":
        require_reachable(config)
        client = ConnectedRay()
        return RayProvider(machine.usd_per_hour, machine.accelerators, config.resource, ledger, client, log=log)
    require_reachable(config)
    if config.provider == "skypilot":
        request = _build_request(config, config.launch or LaunchConfig(), machine, machines)
        return SkyPilotProvider(InstalledSkyPilot(), request, config.infra, ledger, log=log)
    if config.launch is None:
        raise user_error(
            "no launch settings for AWS instances", key="cloud.launch", hint="write launch: {image: ami-...}"
        )
    request = _build_request(config, config.launch, machine, machines)
    return AwsProvider(make_ec2_client(config.region), request, config.region, ledger, log=log)


def _build_request(
    config: ClusterConfig, launch: LaunchConfig, machine: Machine, machines: Sequence[Machine]
) -> LaunchRequest:
    return LaunchRequest(
        machine=machine,
        launch=launch,
        head_address=str(config.ray_address),
        folder=str(config.run_folder.resolve()),
        expires_at=time.time() + (config.deadline_s or 0.0) + launch.grace_s,
        offers=list_offers(machine, machines, config.zones),
    )


def require_reachable(config: ClusterConfig) -> None:
    """Require that a running Ray cluster is named if nodes come from one or join one, and that SkyPilot is installed.

    Raises:
        UnfoldError: It is not.
    """
    if config.provider == "ray" and config.ray_address is None:
        hint = "unfold train SPEC --engine ray --ray-address HOST:6379"
        raise user_error("nodes of a Ray cluster, but no address is given", key="cloud.provider", hint=hint)
    if config.provider in ("aws", "skypilot") and config.ray_address is None:
        hint = "ray start --head on a machine that the instances reach, then --engine ray --ray-address HOST:6379"
        message = f"instances of {config.provider} join a Ray cluster, but no address is given"
        raise user_error(message, key="cloud.provider", hint=hint)
    if config.provider == "skypilot":
        require_packages("skypilot", "sky", key="cloud.provider")


def build_cluster(config: ClusterConfig, setup: WorkerSetup, accelerators: int, provider: NodeProvider) -> Cluster:
    """Build the cluster of the engine, on nodes of a provider.

    Raises:
        UnfoldError: A running Ray cluster is named for local nodes.
    """
    mark = hashlib.sha256(bytes(config.run_folder.resolve())).hexdigest()
    if config.engine == "local":
        return LocalCluster(setup, accelerators, provider, config.is_spread, mark)
    if isinstance(provider, RayProvider):
        held = provider.reservations
        shared_nodes = RemoteRayNodes(str(config.ray_address), held)
        return RayCluster(setup, accelerators, provider, shared_nodes, config.is_spread, held)
    if config.provider in ("aws", "skypilot"):
        ray_nodes = RemoteRayNodes(str(config.ray_address))
        return RayCluster(setup, accelerators, provider, ray_nodes, config.is_spread)
    if config.ray_address is not None:
        hint = "write provider: ray to use its nodes, or leave out --ray-address to start raylets on this machine"
        raise user_error("local nodes are not part of a running Ray cluster", key="cloud.provider", hint=hint)
    return RayCluster(setup, accelerators, provider, LocalRayNodes(accelerators, mark), config.is_spread)
