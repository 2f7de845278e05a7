"""The ``control`` section of a spec: the existing deployment that ``unfold serve --target`` scales, and its signals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field

from unfoldkit.api import Duration, Model, Problem, did_you_mean
from unfoldkit.kubernetes.scale import WORKLOAD_HINT, parse_workload

Replicas = Annotated[int, Field(ge=1, le=100_000)]


class KubernetesAccess(Model):
    """The Kubernetes cluster of the deployment."""

    context: str = Field(default="", description="context of the kubeconfig; default: the current one")
    kubeconfig: str = Field(default="", description="path of the kubeconfig; default: that of kubectl")
    namespace: str = Field(default="", description="namespace of the workloads; default: that of the context")
    lease: Annotated[Duration, Field(ge=3, le=300)] = Field(
        default=15.0, description="time after which another controller takes over from one that died"
    )


class RayAccess(Model):
    """The Ray Serve application."""

    address: str = Field(default="auto", description="address of the Ray cluster")
    application: str = Field(default="default", description="name of the application")


class ControlledStage(Model):
    """The replicas of a stage in the existing deployment."""

    workload: str | None = Field(
        default=None,
        description=f"{WORKLOAD_HINT}, or the name of the deployment on Ray Serve; default: that of the stage",
    )
    queue: Annotated[str, Field(min_length=1)] | None = Field(
        default=None, description="PromQL: items that wait at this stage"
    )
    min: Replicas = Field(default=1, description="fewest replicas")
    max: Replicas | None = Field(default=None, description="most replicas; default: tuner.most")


class ControlSpec(Model):
    """What ``unfold serve --target`` reads and scales."""

    prometheus: str | None = Field(default=None, description="URL of the Prometheus server with the signals")
    user: str | None = Field(
        default=None, min_length=1, description="user name at Prometheus; its password is in key_env or key_file"
    )
    key_env: str | None = Field(
        default=None,
        min_length=1,
        description="the environment variable with the bearer token of Prometheus, or with the password of user",
    )
    key_file: str | None = Field(
        default=None, min_length=1, description="the file with it instead, which each request reads again"
    )
    arrivals: Annotated[str, Field(min_length=1)] | None = Field(
        default=None,
        description="selector of the counter of all queries, refused ones included, such as "
        'http_requests_total{service="video"}; default: unfold_pipeline_queries_total of the model with the name of '
        "the spec",
    )
    every: Annotated[Duration, Field(ge=1, le=60)] = Field(default=5.0, description="time between two decisions")
    stale: Annotated[Duration, Field(ge=5, le=600)] = Field(
        default=60.0, description="age from which the newest sample is ignored"
    )
    add: Replicas = Field(default=10, description="replicas that one decision may add to a stage at most")
    remove: Replicas = Field(default=1, description="replicas that one decision may remove from a stage at most")
    kubernetes: KubernetesAccess = KubernetesAccess()
    ray: RayAccess = RayAccess()
    stages: dict[str, ControlledStage] = Field(default={}, description="by stage: its workload, queue and limits")

    def find_stage(self, name: str) -> ControlledStage:
        """Return what the spec states for a stage, or the defaults."""
        return self.stages.get(name, ControlledStage())


def validate_control(control: ControlSpec, stages: Mapping[str, object], most: int) -> Iterable[Problem]:
    """Yield what is wrong with the control section of a spec with ``stages``."""
    if control.prometheus is not None:
        url = urlsplit(control.prometheus)
        if url.scheme not in ("http", "https") or not url.netloc:
            yield Problem(("control", "prometheus"), "is not a URL", hint="http://prometheus.monitoring:9090")
    yield from _validate_credentials(control)
    for name, stage in control.stages.items():
        path = ("control", "stages", name)
        if stages and name not in stages:
            yield Problem(path, "no such stage", hint=did_you_mean(name, stages), at_key=True)
        limit = most if stage.max is None else stage.max
        if stage.min > limit:
            key = (*path, "min")
            yield Problem(key, f"more than the maximum of {limit}", hint="raise max or tuner.most")
        if stage.workload is not None and "/" in stage.workload and parse_workload(stage.workload) is None:
            yield Problem((*path, "workload"), "is not a workload", hint=WORKLOAD_HINT)
    workloads = [control.find_stage(name).workload or name for name in stages]
    for name in stages:
        workload = control.find_stage(name).workload or name
        if workloads.count(workload) > 1 and name in control.stages:
            key = ("control", "stages", name, "workload")
            yield Problem(key, "another stage has this workload", hint="each stage has replicas of its own")


def _validate_credentials(control: ControlSpec) -> Iterable[Problem]:
    keys = [name for name in ("key_env", "key_file") if getattr(control, name) is not None]
    if len(keys) > 1:
        yield Problem(("control", "key_file"), "key_env already names the secret", hint="leave one of them out")
    if control.user is not None and not keys:
        yield Problem(("control", "user"), "no password", hint="key_env: VARIABLE or key_file: PATH")
    if keys and "@" in urlsplit(control.prometheus or "").netloc:
        yield Problem(("control", "prometheus"), f"has credentials beside {keys[0]}", hint="http://HOST:PORT")
