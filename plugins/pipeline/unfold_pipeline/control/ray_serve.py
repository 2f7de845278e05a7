"""A Ray Serve application that this project did not deploy: its counters, its replicas, and one controller for it.

Replica counts go out through the scale endpoint of Ray Serve's REST API, for which the application must have been
deployed with ``external_scaler_enabled``. Demand is what Ray's routers count and what was refused in front of them,
read from the metrics port of each node.
The lease is an actor with a name: Ray admits one of that name, and removes it with the process that created it.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import quote

import numpy as np

from unfold_pipeline._types import FloatArray
from unfold_pipeline.control.demand import CounterSeries, Demand, SignalError, find_first_sample, spread_arrivals
from unfold_pipeline.control.http import BoundedClient, HttpError
from unfold_pipeline.control.prometheus import HISTORY_S
from unfold_pipeline.control.scaled_workloads import LEASE_PREFIX, StageReplicas
from unfoldkit.api import user_error
from unfoldkit.safe_io.files import read_bytes

ARRIVALS = "ray_serve_num_router_requests_total"
"""Queries that a router took up; a full queue (``max_queued_requests``) refuses the others before they count."""
REFUSALS = ("ray_serve_num_http_error_requests_total", "ray_serve_num_grpc_error_requests_total")
REFUSAL_CODES = frozenset({"503", "RESOURCE_EXHAUSTED"})
"""How Ray answers what a full queue refuses, unless a ``backpressure_config`` states another status."""
QUEUED = "ray_serve_deployment_queued_queries"
REPORT_INTERVAL_S = 10.0
"""Ray's workers report their metrics at this interval; between two reports a counter stands still."""
LEASE_S = 15.0
DASHBOARD_TIMEOUT_S = 30.0
"""The dashboard loads Ray Serve at the first request, which takes some seconds."""
LEASE_TIMEOUT_S = 3.0
NAMESPACE = "unfold"
MAX_SERIES = 10_000
KEY = "control.ray.application"
Labels = tuple[tuple[str, str], ...]
Sample = tuple[str, Labels, float]
"""Name, labels and value."""


@dataclass(slots=True)
class RayServeTarget:
    """An application, scaled by the REST API of Ray Serve.

    Attributes:
        ray: The module, connected to the cluster.
        client: Sends requests to the dashboard.
        dashboard: URL of the dashboard.
        application: Name of the application.
        workloads: The deployment of each stage.
        lease_s: How long leadership lasts without a renewal.
        lease: The actor of this process; ``None`` without leadership.
        leads_until_s: End of the leadership, by the monotonic clock.
    """

    ray: ModuleType
    client: BoundedClient
    dashboard: str
    application: str
    workloads: tuple[str, ...]
    lease_s: float = LEASE_S
    lease: Any = None
    leads_until_s: float = -np.inf

    @property
    def location(self) -> str:
        """Where the application runs, in words."""
        return f"application {self.application} of Ray Serve at {self.dashboard}"

    @property
    def is_leader(self) -> bool:
        """Whether this process may scale now, by its own clock."""
        return time.monotonic() < self.leads_until_s

    def renew(self) -> bool:
        """Create the actor of the lease, or make sure that it lives."""
        began_s = time.monotonic()
        try:
            if self.lease is None:
                self.lease = self._create_lease()
            self.ray.get(self.lease.is_held.remote(), timeout=LEASE_TIMEOUT_S)
        except ValueError:
            # the name is taken
            self.lease = None
            self.leads_until_s = -np.inf
            return False
        except self.ray.exceptions.RayError as error:
            # an actor that is still starting keeps its name; without a handle Ray would end it
            if not isinstance(error, self.ray.exceptions.GetTimeoutError):
                # its name is free, and another controller may begin at once
                self.lease, self.leads_until_s = None, -np.inf
            message = f"Ray does not keep the lease: {type(error).__name__}"
            raise user_error(message, key="control.ray.address") from error
        self.leads_until_s = began_s + self.lease_s
        return True

    def release(self) -> None:
        """Remove the actor, so that another controller takes over at once."""
        self.leads_until_s = -np.inf
        if self.lease is not None:
            self.ray.kill(self.lease)
            self.lease = None

    def list_warnings(self) -> list[str]:
        """Return no warning; see :class:`~unfold_pipeline.control.scaled_workloads.ScalingTarget`."""
        return []

    def list_denied(self) -> list[str]:
        """Return nothing: Ray has no rights per account."""
        return []

    def read_replicas(self) -> tuple[StageReplicas, ...]:
        """Return the replicas of each stage; only those that run exist."""
        applications = self._list_applications()
        details = applications.get(self.application)
        if details is None:
            known = ", ".join(sorted(applications)) or "none"
            message = f"Ray Serve has no application {self.application}"
            fault = user_error(message, key=KEY, hint=f"it has {known}")
            return (StageReplicas(0, 0, fault),) * len(self.workloads)
        replicas = tuple(self._read_stage(details["deployments"], name) for name in self.workloads)
        if not details.get("external_scaler_enabled") and all(item.fault is None for item in replicas):
            hint = "serve.run(..., external_scaler_enabled=True), or external_scaler_enabled: true in its config"
            raise user_error(f"the application {self.application} admits no external scaler", key=KEY, hint=hint)
        return replicas

    def _read_stage(self, deployments: Mapping[str, Any], name: str) -> StageReplicas:
        deployment = deployments.get(name)
        if deployment is None:
            known = ", ".join(sorted(deployments))
            hint = f"workload: one of {known}" if known else "it has none at all: it starts, or is deleted"
            message = f"the application {self.application} has no deployment {name}"
            return StageReplicas(0, 0, user_error(message, key="control.stages", hint=hint))
        running = sum(replica.get("state") == "RUNNING" for replica in deployment.get("replicas") or ())
        desired = int(deployment["target_num_replicas"])
        if not (deployment.get("deployment_config") or {}).get("autoscaling_config"):
            return StageReplicas(desired, running)
        message = f"Ray Serve scales the deployment {name} itself"
        hint = "num_replicas: 1 in its config, and neither auto nor an autoscaling_config"
        return StageReplicas(desired, running, user_error(message, key="control.stages", hint=hint))

    def set_replicas(self, stage: int, count: int) -> bool:
        """Demand ``count`` replicas through the scale endpoint."""
        names = [quote(name, safe="") for name in (self.application, self.workloads[stage])]
        path = f"{self.dashboard}/api/v1/applications/{names[0]}/deployments/{names[1]}/scale"
        try:
            reply = self.client.send("POST", path, json={"target_num_replicas": count})
        except HttpError as error:
            raise user_error(str(error), key=KEY) from error
        if reply.status != 200:
            reason = reply.body[:300].decode(errors="replace")
            raise user_error(f"Ray Serve refuses to scale {self.workloads[stage]}: {reason}", key=KEY)
        return True

    def read_refusal_codes(self) -> frozenset[str]:
        """Return the statuses of what full queues refuse, as the deployments state them now."""
        deployments = self._list_applications().get(self.application, {}).get("deployments", {}).values()
        configs = [(item.get("deployment_config") or {}).get("backpressure_config") or {} for item in deployments]
        return REFUSAL_CODES.union(str(config["status_code"]) for config in configs if config.get("status_code"))

    def _list_applications(self) -> Mapping[str, Any]:
        try:
            reply = self.client.send("GET", f"{self.dashboard}/api/serve/applications/")
            applications: Mapping[str, Any] = json.loads(reply.body)["applications"]
        except HttpError as error:
            raise user_error(str(error), key=KEY, hint="ray start --head starts a dashboard") from error
        except (ValueError, KeyError, TypeError) as error:
            message = f"{self.dashboard} answered with status {reply.status}, and lists no applications"
            raise user_error(message, key=KEY) from error
        return applications

    def _create_lease(self) -> Any:
        # a class of this function is sent by value: the cluster need not have this package
        class TunerLease:
            def is_held(self) -> bool:
                return True

        name = f"{LEASE_PREFIX}:{self.application}"
        return self.ray.remote(TunerLease).options(name=name, namespace=NAMESPACE, num_cpus=0).remote()


@dataclass(slots=True)
class RayMetricsSource:
    """Scrapes the metrics port of each node, and keeps what the counters were in the last minutes.

    Attributes:
        ray: The module, connected to the cluster.
        client: Sends requests to the nodes.
        application: Name of the application.
        workloads: The deployment of each stage.
        share: Queries that enter at the first stage, as a fraction of all.
        stale_s: Age from which samples count as none.
        refusal_codes: Statuses of queries that were refused in front of the first stage.
        samples: Time and value of each counter, where they changed.
        exported: Counters that each node exported at the last reading, if it responded.
        read_s: Time of the last reading.
    """

    ray: ModuleType
    client: BoundedClient
    application: str
    workloads: tuple[str, ...]
    share: float
    stale_s: float
    refusal_codes: frozenset[str] = REFUSAL_CODES
    samples: dict[Labels, deque[tuple[float, float]]] = field(default_factory=dict)
    exported: dict[str, set[Labels]] = field(default_factory=dict)
    read_s: float = np.inf

    @property
    def location(self) -> str:
        """What is read, in words."""
        return f"{ARRIVALS} of {self.workloads[0]} on the metrics ports of Ray"

    def read(self) -> Demand:
        """Return the demand of the last three minutes, as far as this process has observed it.

        Raises:
            SignalError: No node responds, or the counters are absent.
        """
        queued = dict.fromkeys(self.workloads, np.nan)
        now_s = time.time()
        failures: list[str] = []
        exported_before, self.exported = self.exported, {}
        for node, samples in self._scrape(failures):
            counters: dict[Labels, float] = {}
            for name, labels, value in samples:
                deployment = dict(labels).get("deployment", "")
                if name == QUEUED and deployment in queued:
                    queued[deployment] = np.nan_to_num(queued[deployment]) + value
                elif name == ARRIVALS and deployment == self.workloads[0]:
                    counters[labels] = value / self.share
                elif name in REFUSALS and dict(labels).get("error_code") in self.refusal_codes:
                    counters[labels] = value
            began = counters.keys() - exported_before.get(node, counters)
            self._add_samples(counters, began, now_s)
            self.exported[node] = set(counters)
        self.read_s = now_s
        self._drop_old(now_s)
        if not self.samples:
            hint = "Ray exports it from the first query on"
            raise SignalError("no data", f"no node exports {ARRIVALS} of {self.workloads[0]}", hint)
        series = [_build_series(samples) for samples in self.samples.values()]
        arrivals_s, until_s = spread_arrivals(series)
        if now_s - until_s > self.stale_s:
            raise SignalError("stale", f"the newest sample of {ARRIVALS} is {now_s - until_s:.0f} s old")
        lengths: FloatArray = np.array([queued[name] for name in self.workloads])
        age_s, since_s = now_s - until_s, find_first_sample(series)
        return Demand(
            arrivals_s=arrivals_s,
            until_s=until_s,
            age_s=age_s,
            queued=lengths,
            since_s=since_s,
            gap=failures[0] if failures else "",
        )

    def _scrape(self, failures: list[str]) -> Iterator[tuple[str, list[Sample]]]:
        """Yield each node and its samples of the application; add to ``failures`` why a node has none."""
        from prometheus_client.parser import text_string_to_metric_families

        nodes = [node for node in self.ray.nodes() if node["Alive"]]
        for node in nodes:
            url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
            try:
                reply = self.client.send("GET", url)
            except HttpError as error:
                failures.append(str(error))
                continue
            if reply.status != 200:
                failures.append(f"{url} answered with status {reply.status}")
                continue
            text = reply.body.decode(errors="replace")
            # most of the page is about other things
            wanted = "\n".join(line for line in text.splitlines() if line.startswith((ARRIVALS, QUEUED, *REFUSALS)))
            try:
                families = list(text_string_to_metric_families(f"{wanted}\n"))
            except ValueError as error:
                failures.append(f"{url} returned no metrics: {error}")
                continue
            key = {"node": node["NodeID"]}
            yield (
                node["NodeID"],
                [
                    (sample.name, tuple(sorted({**sample.labels, **key, "name": sample.name}.items())), sample.value)
                    for sample in itertools.chain.from_iterable(family.samples for family in families)
                    if sample.labels.get("application") == self.application
                ],
            )
        if len(failures) == len(nodes):
            raise SignalError("unreachable", failures[0] if failures else "Ray has no live node")

    def _add_samples(self, counters: Mapping[Labels, float], began: AbstractSet[Labels], now_s: float) -> None:
        """Add the counters that a node exports; those that ``began`` were 0 at the last reading.

        A process reports all of its counters at once: where one has grown, the others are known to stand still.
        """
        report_s = now_s - REPORT_INTERVAL_S
        for labels in began - self.samples.keys():
            if len(self.samples) < MAX_SERIES:
                self.samples[labels] = deque([(min(self.read_s, report_s), 0.0)])
        known = {labels: samples for labels in counters if (samples := self.samples.get(labels)) is not None}
        reported = {_find_process(labels) for labels, samples in known.items() if counters[labels] != samples[-1][1]}
        for labels, value in counters.items():
            samples = known.get(labels)
            if samples is None:
                if len(self.samples) < MAX_SERIES:
                    self.samples[labels] = deque([(now_s, value)])
            elif value != samples[-1][1]:
                _move_to_report(samples, report_s)
                samples.append((now_s, value))
            elif _find_process(labels) in reported or samples[-1][0] <= report_s:
                samples.append((now_s, value))

    def _drop_old(self, now_s: float) -> None:
        """Forget samples that no rule looks back to, and counters of handles that are gone."""
        for labels, samples in list(self.samples.items()):
            while samples and samples[0][0] < now_s - HISTORY_S:
                samples.popleft()
            if not samples:
                del self.samples[labels]


def read_token(environment: Mapping[str, str] = os.environ) -> str:
    """Return the token of the cluster, as Ray itself looks for it; empty if the cluster needs none.

    Raises:
        UnfoldError: The file of the token cannot be read.
    """
    if environment.get("RAY_AUTH_TOKEN") or environment.get("RAY_AUTH_MODE") != "token":
        return environment.get("RAY_AUTH_TOKEN", "").strip()
    path = environment.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token"
    return read_bytes(path).decode(errors="replace").strip()


def read_dashboard_url(ray: ModuleType) -> str:
    """Return the URL of the dashboard of the connected cluster.

    Raises:
        UnfoldError: The cluster has none.
    """
    url = str(ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level="ERROR").dashboard_url or "")
    if not url:
        hint = "ray start --head --include-dashboard=true"
        raise user_error("the Ray cluster has no dashboard", key="control.ray.address", hint=hint)
    return url if "://" in url else f"http://{url}"


def _find_process(labels: Labels) -> str | Labels:
    return dict(labels).get("WorkerId", labels)


def _move_to_report(samples: deque[tuple[float, float]], report_s: float) -> None:
    """Move the newest sample of a counter that stood still back to the last report.

    It was read between two reports; the growth of a whole interval would read as that of a moment.
    """
    stood_still = len(samples) == 1 or samples[-1][1] == samples[-2][1]
    if stood_still and samples[-1][0] > report_s:
        _, value = samples.pop()
        if not samples or samples[-1][0] < report_s:
            samples.append((report_s, value))


def _build_series(samples: Sequence[tuple[float, float]]) -> CounterSeries:
    table: FloatArray = np.array(samples)
    return CounterSeries(table[:, 0], table[:, 1])
