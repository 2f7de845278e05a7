"""What a user writes in a spec of kind ``placement``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from unfold_placement.schema.columns import NODE_COLUMNS, TASK_COLUMNS, Columns
from unfold_placement.schema.policies import PolicySpec
from unfoldkit.api import Bytes, Duration, Model, Name, Problem, Spec, did_you_mean

Count = Annotated[int, Field(ge=1, le=100_000)]
Amount = Annotated[float, Field(ge=0, le=1e6)]
Traced = Literal["openb", "csv", "kubectl", "ray", "swf", "philly"]
Amounts = Annotated[dict[Name, Amount], Field(max_length=16)]


class NodeSpec(Model):
    """Some nodes that are alike."""

    count: Count = 1
    name: Name | None = Field(
        default=None, description="of the nodes, numbered where there are several; node if left out"
    )
    cpu: Amount = 0
    gpu: Amount = 0
    memory: Bytes = 0
    resources: Amounts = Field(default_factory=dict, description="further resources, by name")
    type: str = Field(default="", description="what run times by type refer to")
    labels: dict[str, str] = Field(default_factory=dict, description="such as rack, which policies look at")
    data: tuple[str, ...] = Field(default=(), description="blocks of data that are on these nodes")


class TableSpec(Model):
    """How a CSV file is read whose columns have other names or units."""

    columns: dict[str, str | tuple[str, ...]] = Field(
        default_factory=dict, description="what the file calls a column, such as run: duration; several are joined"
    )
    scale: dict[str, Annotated[float, Field(gt=0, le=1e12)]] = Field(
        default_factory=dict, description="what the numbers of a column are multiplied by, such as gpu: 0.01"
    )

    head: tuple[str, ...] = Field(
        default=(), description="the columns of a file whose first line does not name them, in their order"
    )
    resources: Annotated[dict[Name, str], Field(max_length=16)] = Field(
        default_factory=dict,
        description="the columns of amounts of further resources, such as rdma: rdma_request",
    )

    @property
    def given(self) -> bool:
        """Whether anything is said of the file."""
        return bool(self.columns or self.scale or self.head or self.resources)

    @property
    def read(self) -> Columns:
        """The columns, as they are read."""
        names = {ours: (theirs,) if isinstance(theirs, str) else theirs for ours, theirs in self.columns.items()}
        return Columns(names, self.scale, self.head, self.resources)


class KubernetesSpec(Model):
    """A Kubernetes cluster, and where on it the policy's pods are."""

    context: str = Field(default="", description="of the kubeconfig; the current one, or the own cluster, if left out")
    kubeconfig: str = Field(default="", description="the file; KUBECONFIG or ~/.kube/config if left out")
    namespace: Name = Field(default="unfold", description="of the pods and of the controller's books")
    resources: dict[str, str] = Field(
        default_factory=dict, description="what the cluster calls a resource, such as gpu: nvidia.com/gpu"
    )
    patience: Duration = Field(default=10.0, description="how long an opened pod may stay without a node")
    in_flight: Count = Field(default=64, description="how many pods may be opened and without a node at a time")
    image: str = Field(default="", description="of the controller, for --format kubernetes")
    counters: Literal["gates", "dra"] = Field(
        default="gates", description="dra: limits and licences are devices too, which kube-scheduler itself counts"
    )


class ClusterSpec(Model):
    """The nodes: written here, read from a trace, or those of a live cluster."""

    nodes: Annotated[tuple[NodeSpec, ...], Field(max_length=1000)] = ()
    trace: Traced | None = Field(
        default=None,
        description="nodes of the openb trace (Alibaba, 2023), of a table of your own, of what kubectl get nodes or "
        "ray list nodes write as JSON, of the header of a log in the Standard Workload Format (swf), or of the Philly "
        "trace (Microsoft, 2017)",
    )
    path: str | None = Field(default=None, description="the file of nodes")
    table: TableSpec = Field(default=TableSpec(), description="how a CSV file of nodes is read")
    part: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="only this part of the file's nodes, evenly spread over it"
    )
    kubernetes: KubernetesSpec | None = Field(default=None, description="serve on this Kubernetes cluster")
    ray: str | None = Field(
        default=None, description="serve on this Ray cluster: an address, or auto; nodes then says more of its nodes"
    )
    lease: Annotated[Duration, Field(ge=1, le=3600)] = Field(
        default=15.0, description="names live so long without a sign of their controller, which leads for a third of it"
    )


class TaskSpec(Model):
    """Some tasks that are alike."""

    job: Name
    count: Count = 1
    cpu: Amount = 0
    gpu: Amount = 0
    memory: Bytes = 0
    resources: Amounts = Field(default_factory=dict)
    run: Duration = Field(description="how long one runs")
    run_on: dict[str, Duration] = Field(default_factory=dict, description="the same by node type, where it differs")
    at: Duration = Field(default=0.0, description="when the first comes")
    every: Duration = Field(default=0.0, description="between two")
    user: str = Field(default="", description="whose it is; a path such as research/vision for a hierarchy")
    role: str = Field(default="", description="such as server or worker; tasks of a job may have several")
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0
    deadline: Duration | None = Field(default=None, description="after its arrival")
    follows: str = Field(default="", description="a job whose tasks it runs beside (policy affinity)")
    avoids: str = Field(default="", description="a job whose tasks it keeps clear of (policy avoid)")
    types: tuple[str, ...] = Field(default=(), description="types of node on which it can run (policy types)")
    after: tuple[str, ...] = Field(default=(), description="jobs that must have ended (policy barrier)")
    data: tuple[str, ...] = Field(default=(), description="blocks that it reads (policy locality)")


class TraceSpec(Model):
    """A recorded workload."""

    trace: Traced
    path: str
    faster: Annotated[float, Field(gt=0, le=1e6)] = Field(
        default=1.0, description="arrivals come this many times as fast"
    )
    table: TableSpec = Field(default=TableSpec(), description="how a CSV file of tasks is read")
    user: str = Field(default="qos", description="the column of an openb file that names the user")
    first: Count | None = Field(
        default=None, description="only so many rows; of a job that is cut through, what is left is the job"
    )


class ManySpec(Model):
    """A workload made by chance: Poisson arrivals, log-normal run times, demands drawn from a list."""

    random: Count = Field(description="how many tasks")
    rate: Annotated[float, Field(gt=0, le=1e6)] = Field(default=1.0, description="arrivals in a second")
    run: Duration = Field(default=60.0, description="mean run time")
    spread: Annotated[float, Field(ge=0, le=5)] = Field(default=1.0, description="of the logarithm of run times")
    users: Annotated[int, Field(ge=1, le=1000)] = 4
    demands: Annotated[tuple[Amounts, ...], Field(min_length=1)] = ({"cpu": 1.0},)


class WorkloadSpec(Model):
    """The tasks."""

    @property
    def given(self) -> bool:
        """Whether there are any."""
        return bool(self.tasks or self.replay or self.made)

    tasks: Annotated[tuple[TaskSpec, ...], Field(max_length=10_000)] = ()
    replay: TraceSpec | None = Field(default=None, description="a recorded workload")
    made: ManySpec | None = Field(default=None, description="one made by chance")


class ExplainSpec(Model):
    """Which waiting task is explained in the report."""

    task: str
    at: Duration | None = Field(default=None, description="at this time; half-way through its wait if left out")


class PlacementSpec(Spec):
    """Places tasks by policies that the application writes itself."""

    kind: Literal["placement"]
    cluster: ClusterSpec
    workload: WorkloadSpec = WorkloadSpec()
    policy: PolicySpec = PolicySpec()
    explain: ExplainSpec | None = None

    def problems(self) -> Iterable[Problem]:
        """Say what does not fit together."""
        yield from _cluster_problems(self.cluster)
        yield from _workload_problems(self.workload)
        yield from self.policy.problems(("policy",))


def _cluster_problems(cluster: ClusterSpec) -> Iterator[Problem]:
    live = [key for key in ("ray", "kubernetes") if getattr(cluster, key) is not None]
    given = [*(key for key in ("nodes", "trace") if getattr(cluster, key)), *live]
    if len(given) != 1 and given not in (["nodes", "ray"], ["nodes", "kubernetes"]):
        message = f"{' and '.join(given)} together" if given else "no nodes"
        yield Problem(("cluster",), message, hint="write nodes, trace with path, ray: auto, or kubernetes: {}")
    yield from _table_problems(cluster.trace, cluster.table, ("cluster", "table"), NODE_COLUMNS, labels=True)
    if cluster.trace and not cluster.path:
        yield Problem(("cluster",), "a trace needs the path of its file of nodes", hint="write path: FILE")
    for index, node in enumerate(cluster.nodes):
        if not (node.cpu or node.gpu or node.memory or node.resources or cluster.ray):
            yield Problem(("cluster", "nodes", index), "a node without any resource", hint="write cpu: 4")


def _table_problems(
    trace: str | None, table: TableSpec, where: tuple[str, ...], known: Sequence[str], *, labels: bool = False
) -> Iterator[Problem]:
    if table.given and trace != "csv":
        yield Problem(where, "only a CSV file has columns of your own", hint="write trace: csv")
    every = (*known, *table.resources)
    for key, names in (("columns", () if labels else table.columns), ("scale", table.scale)):
        for name in names:
            if name not in every:
                yield Problem((*where, key, name), f"no column {name}", hint=did_you_mean(name, every), at_key=True)
    for name in table.resources:
        if name in known:
            message = f"{name} is a column of its own"
            yield Problem((*where, "resources", name), message, hint=f"write columns: {{{name}: ...}}", at_key=True)


def _workload_problems(workload: WorkloadSpec) -> Iterator[Problem]:
    if replay := workload.replay:
        yield from _table_problems(replay.trace, replay.table, ("workload", "replay", "table"), TASK_COLUMNS)
    given = [key for key in ("tasks", "replay", "made") if getattr(workload, key)]
    if len(given) > 1:
        yield Problem(("workload",), f"{' and '.join(given)} together", hint="one of tasks, replay, made")
    jobs = {item.job for item in workload.tasks}
    for index, item in enumerate(workload.tasks):
        here: tuple[Any, ...] = ("workload", "tasks", index)
        if item.run <= 0:
            yield Problem((*here, "run"), "a task takes some time")
        for key, names in (("follows", (item.follows,)), ("avoids", (item.avoids,)), ("after", item.after)):
            for name in names:
                if name and name not in jobs:
                    yield Problem((*here, key), f"no such job: {name}", hint=did_you_mean(name, jobs))
