"""Which cluster and whose nodes: what the spec's provider and the engine of the run come to."""

from __future__ import annotations

import time

from unfold_tuning.cluster.aws import AwsFleet, Request, client
from unfold_tuning.cluster.local import Cluster, LocalCluster
from unfold_tuning.cluster.provider import Fleet, own
from unfold_tuning.cluster.ray import RayCluster
from unfold_tuning.cluster.ray_nodes import Here, Joining
from unfold_tuning.job.profile import Machine
from unfold_tuning.schema.models import TuningSpec
from unfold_tuning.trial.ledger import Ledger
from unfold_tuning.trial.trainable import Work
from unfoldkit.api import Run, fail


def fleet_of(spec: TuningSpec, run: Run, machine: Machine, ledger: Ledger) -> Fleet:
    """Return what gives the nodes: this machine, or AWS.

    Raises:
        UnfoldError: something that AWS needs is not said.
    """
    if spec.cloud.provider == "local":
        return own(ledger, machine.price)
    address = getattr(run.engine, "address", None)
    if address is None:
        hint = "ray start --head on a machine that the instances reach, then --engine ray --ray-address HOST:6379"
        raise fail("instances of AWS join a Ray cluster, and none is named", key="cloud.provider", hint=hint)
    if spec.cloud.launch is None:
        raise fail("nothing says how to start instances", key="cloud.launch", hint="write launch: {image: ami-...}")
    expires = time.time() + (spec.deadline or 0.0) + spec.cloud.launch.grace
    request = Request(machine, spec.cloud.launch, address, str(run.directory.path.resolve()), expires)
    return AwsFleet(client(spec.cloud.region), request, spec.cloud.region, ledger, log=run.log)


def cluster_of(spec: TuningSpec, run: Run, work: Work, machine: Machine, fleet: Fleet) -> Cluster:
    """Return the cluster of the engine, on nodes of a fleet."""
    spread = spec.placement.spread is not None
    if run.engine.name == "local":
        return LocalCluster(work, machine.accelerators, fleet, spread)
    address = getattr(run.engine, "address", None)
    if spec.cloud.provider == "aws":
        return RayCluster(work, machine.accelerators, fleet, Joining(str(address)), spread)
    if address is not None:
        hint = "leave --ray-address out: raylets are started and ended here as the plan says"
        raise fail("a running Ray cluster does not grow and shrink by itself", key="cloud.provider", hint=hint)
    return RayCluster(work, machine.accelerators, fleet, Here(machine.accelerators), spread)
