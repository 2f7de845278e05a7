"""The verb ``serve``: run the policies against a live cluster, with a status page."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass

from unfold_placement.core.controller import collect_requests
from unfold_placement.core.policy import Policy
from unfold_placement.core.shadow_agreement import Agreement
from unfold_placement.core.types import Task
from unfold_placement.core.watchdog import contain_policies
from unfold_placement.kubernetes.connection import open_cluster, open_cluster_checks, open_cluster_shadow
from unfold_placement.live.backend import Backend
from unfold_placement.live.control_loop import ControlLoop
from unfold_placement.live.local import LocalBackend
from unfold_placement.live.service import ControllerThread, build_application
from unfold_placement.live.state_store import build_state_store
from unfold_placement.live.status import build_dashboard
from unfold_placement.policies.registry import PolicyFactory, PolicyRule, build_policies, has_policy
from unfold_placement.report.shadow_agreement import agreement_report
from unfold_placement.schema.placement import PlacementSpec
from unfold_placement.workload.build import build_nodes, build_tasks, cluster_access, policy_rules
from unfoldkit.api import Report, Run, Service, format_count
from unfoldkit.report import to_data

CHECK_PATIENCE_S = 300.0
"""How long a workload of Kueue keeps its quota without a placement, unless the spec states another time."""
TERMS_PER_LEASE = 3
"""Leadership lasts this fraction of the lease of ephemeral resources."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """A backend, the tasks that this process submits itself, a description, and the decisions of a shadow."""

    backend: Backend
    tasks: Sequence[Task]
    location: str
    agreement: Agreement | None = None


def serve(spec: PlacementSpec, run: Run) -> Service:
    """Return the service: a controller of the spec's cluster.

    Raises:
        UnfoldError: The cluster does not answer, or a policy cannot be built.
    """
    rules = policy_rules(spec.policy)
    if spec.cluster.kubernetes is not None and spec.cluster.kubernetes.kueue and not has_policy(rules, "gang"):
        # a workload is admitted as a whole, or not at all
        rules = (*rules, PolicyRule("gang", {}))

    def new_policies() -> list[Policy]:
        return build_policies(rules, allow_code=run.allow_code)

    with contain_policies(run.log.warning):
        new_policies()
    cluster = open_backend(spec, run, new_policies)
    lease_s = spec.cluster.lease
    loop = ControlLoop(
        backend=cluster.backend,
        make_policies=new_policies,
        process_id=f"{socket.gethostname()}-{os.getpid()}",
        owner=spec.name,
        leader_ttl_s=lease_s / TERMS_PER_LEASE,
        lease_s=lease_s,
    )
    thread = ControllerThread(loop, cluster.tasks)
    policy_names = ", ".join(rule.name for rule in rules) or "none"
    lines = (("cluster", cluster.location), ("policy", policy_names))
    paths = ("/v2/health/ready", "/status")
    agreement = cluster.agreement
    if agreement is not None:
        # the file is that of a report: unfold report RUN shows it
        thread.on_stop = lambda: store_report(run, agreement_report(spec.name, policy_names, agreement))
    application = build_application(spec.name, thread, agreement)
    return Service(spec.name, application, paths, lines=lines, watch=build_dashboard(spec.name, loop))


def store_report(run: Run, report: Report) -> None:
    """Store a report in the run's folder, where ``unfold report`` finds it."""
    run.directory.write("report.json", json.dumps(to_data(report), ensure_ascii=False).encode())


def open_backend(spec: PlacementSpec, run: Run, new_policies: PolicyFactory) -> Cluster:
    """Open the backend of a spec's cluster.

    Raises:
        UnfoldError: The cluster does not answer.
    """
    nodes = build_nodes(spec.cluster, run)
    if spec.cluster.kubernetes is not None and spec.cluster.kubernetes.shadow:
        shadow, location = open_cluster_shadow(spec.name, cluster_access(spec.cluster.kubernetes))
        return Cluster(shadow, (), location, shadow.agreement)
    if spec.cluster.kubernetes is not None and spec.cluster.kubernetes.kueue:
        kubernetes = spec.cluster.kubernetes
        patience_s = kubernetes.patience if "patience" in kubernetes.model_fields_set else CHECK_PATIENCE_S
        checks, location = open_cluster_checks(spec.name, cluster_access(kubernetes), patience_s)
        return Cluster(checks, (), location)
    if spec.cluster.kubernetes is not None:
        policies = new_policies()
        backend, location = open_cluster(
            spec.name,
            cluster_access(spec.cluster.kubernetes),
            lambda task: [ask for ask, _ in collect_requests(policies, task)],
        )
        return Cluster(backend, (), location)
    if spec.cluster.ray:
        from unfold_placement.ray.backend import connect_ray

        return Cluster(connect_ray(spec.cluster.ray, spec.name, nodes), (), f"Ray at {spec.cluster.ray}")
    store = build_state_store(time.monotonic, nodes)
    count = format_count(len(nodes), "node")
    location = f"{count} of the spec, simulated in this process: tasks take time and do nothing"
    return Cluster(LocalBackend(store), build_tasks(spec.workload, run) if spec.workload.is_set else (), location)
