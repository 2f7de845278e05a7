"""The schema of a spec of kind ``placement``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from unfold_placement.schema.columns import (
    AMOUNT_COLUMNS,
    COUNT_COLUMNS,
    MISSING_KEYWORDS,
    NODE_COLUMNS,
    SKIP,
    TASK_COLUMNS,
    TIME_COLUMNS,
    Columns,
    format_cell,
)
from unfold_placement.schema.policies import PolicySpec
from unfoldkit.api import Bytes, Duration, Model, Name, Problem, Spec, did_you_mean

Text = Annotated[str, Field(min_length=1, max_length=253)]
Count = Annotated[int, Field(ge=1, le=100_000)]
Amount = Annotated[float, Field(ge=0, le=1e6)]
TraceFormat = Literal["openb", "csv", "kubectl", "ray", "swf", "philly"]
ResourceName = Annotated[str, Field(pattern=r"^([a-z0-9][a-z0-9.-]*/)?[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=80)]
"""A name, or one with a vendor in front, as Kubernetes writes it: nvidia.com/mig-1g.5gb."""
Amounts = Annotated[dict[ResourceName, Amount], Field(max_length=16)]


class NodeSpec(Model):
    """A group of equal nodes."""

    count: Count = Field(default=1, description="number of such nodes")
    name: Name | None = Field(
        default=None, description="name of the nodes, numbered where there are several; node by default"
    )
    cpu: Amount = Field(default=0, description="cores of each")
    gpu: Amount = Field(default=0, description="GPUs of each")
    memory: Bytes = Field(default=0, description="memory of each")
    resources: Amounts = Field(default_factory=dict, description="further resources by name")
    type: str = Field(default="", description="node type, to which run_on refers")
    labels: dict[str, str] = Field(default_factory=dict, description="labels that policies use, such as rack")
    data: tuple[str, ...] = Field(default=(), description="blocks of data that these nodes store")


class NodeEventSpec(Model):
    """A change of nodes: they are lost, are cordoned, or come back."""

    at: Duration = Field(description="time of the change")
    nodes: Annotated[tuple[Text, ...], Field(min_length=1, max_length=10_000)] = Field(description="names of the nodes")
    change: Literal["down", "cordon", "up"] = Field(
        default="down",
        description="down: its tasks wait again, from their last checkpoint; cordon: nothing more starts there; up",
    )
    lasts: Duration | None = Field(default=None, description="time after which the nodes are up again")


class TableSpec(Model):
    """How to read a CSV file with other column names or units."""

    columns: dict[str, str | tuple[str, ...]] = Field(
        default_factory=dict, description="column names of the file, such as run: duration; several are joined"
    )
    scale: dict[str, Annotated[float, Field(gt=0, le=1e12)]] = Field(
        default_factory=dict, description="factors of columns, such as gpu: 0.01"
    )

    head: tuple[str, ...] = Field(default=(), description="columns in order, for a file without a header")
    resources: Annotated[dict[Name, str], Field(max_length=16)] = Field(
        default_factory=dict,
        description="columns of further resources, such as rdma: rdma_request",
    )
    missing: dict[str, str | Annotated[float, Field(ge=-1e9, le=1e9)]] = Field(
        default_factory=dict,
        description="what missing cells stand for, by default {arrival: first, end: last, run: median, gpu: 0}; "
        "also a duration such as run: 10 min, an amount, or skip, which leaves the row out",
    )
    unknown: dict[str, tuple[str | float, ...]] = Field(
        default_factory=dict,
        description="further cells without a value by column, such as end: [0, -1]; negative stands for all below zero "
        "and, in follows, avoids and after, unlisted for jobs that no row has",
    )

    @property
    def is_set(self) -> bool:
        """Whether anything differs from the default."""
        return self != TableSpec()

    @property
    def as_columns(self) -> Columns:
        """The columns, as readers of files use them."""
        names = {column: (source,) if isinstance(source, str) else source for column, source in self.columns.items()}
        return Columns(
            names,
            self.scale,
            self.head,
            self.resources,
            {column: read_default(column, default) for column, default in self.missing.items()},
            {column: frozenset(map(format_cell, cells)) for column, cells in self.unknown.items()},
        )


def read_default(column: str, default: str | float) -> str | float:
    """Return what a missing cell stands for: a keyword, seconds, or an amount.

    Raises:
        ValueError: The column has no such default.
    """
    if default in MISSING_KEYWORDS.get(column, (SKIP,)):
        return default
    if column in {"arrival", "run"}:
        return TypeAdapter(Duration).validate_python(default)
    if column in {"task", "end"} or isinstance(default, str):
        raise ValueError
    return float(default)


class KubernetesSpec(Model):
    """A Kubernetes cluster and the namespace of the policy's pods."""

    context: str = Field(
        default="",
        description="context of the kubeconfig; the current one, or inside a pod its own cluster, by default",
    )
    kubeconfig: str = Field(default="", description="kubeconfig file; KUBECONFIG or ~/.kube/config by default")
    namespace: Name = Field(default="unfold", description="namespace of the pods and of the controller's records")
    resources: dict[str, str] = Field(
        default_factory=dict, description="resource names of the cluster, such as gpu: nvidia.com/gpu"
    )
    patience: Duration = Field(default=10.0, description="how long a released pod may stay without a node")
    in_flight: Count = Field(default=64, description="how many released pods may be without a node at a time")
    image: str = Field(default="", description="image of the controller, for --format kubernetes")
    shadow: bool = Field(
        default=False,
        description="decide about every pod of the namespace beside kube-scheduler, write nothing, report both",
    )
    kueue: bool = Field(
        default=False,
        description="answer Kueue's admission checks with controllerName placement.unfoldkit/NAME instead of placing "
        "pods; patience is then how long a workload keeps its quota without a placement (5 min by default)",
    )
    counters: Literal["gates", "dra"] = Field(
        default="gates", description="dra: limits and licences are also devices, which kube-scheduler counts itself"
    )


class ClusterSpec(Model):
    """The nodes: written here, read from a file, or those of a live cluster."""

    nodes: Annotated[tuple[NodeSpec, ...], Field(max_length=1000)] = Field(
        default=(), description="groups of equal nodes"
    )
    trace: TraceFormat | None = Field(
        default=None,
        description="format of the file of nodes: the openb trace (Alibaba, 2023), your own CSV, JSON of kubectl get "
        "nodes or ray list nodes, the header of a Standard Workload Format log (swf), or the Philly trace (Microsoft, "
        "2017)",
    )
    path: str | None = Field(default=None, description="file of nodes")
    table: TableSpec = Field(default=TableSpec(), description="how to read a CSV file of nodes")
    part: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="use only this fraction of the file's nodes, evenly spaced"
    )
    events: Annotated[tuple[NodeEventSpec, ...], Field(max_length=10_000)] = Field(
        default=(), description="nodes that are lost, cordoned or come back during a plan"
    )
    churn: str | None = Field(
        default=None, description="CSV file of further events: time (s from the first arrival), node, change"
    )
    kubernetes: KubernetesSpec | None = Field(default=None, description="serve on this Kubernetes cluster")
    ray: str | None = Field(
        default=None, description="serve on this Ray cluster: an address, or auto; nodes then adds to its description"
    )
    lease: Annotated[Duration, Field(ge=1, le=3600)] = Field(
        default=15.0,
        description="lifetime of ephemeral resources without their controller; leadership lasts a third of it",
    )


class TaskSpec(Model):
    """A group of equal tasks."""

    job: Name = Field(description="name of the job; its tasks are JOB-0, JOB-1 and so on")
    count: Count = Field(default=1, description="number of such tasks")
    cpu: Amount = Field(default=0, description="cores that each demands")
    gpu: Amount = Field(default=0, description="GPUs that each demands; a fraction is a share of one device")
    memory: Bytes = Field(default=0, description="memory that each demands")
    resources: Amounts = Field(default_factory=dict, description="further demands by name")
    run: Duration = Field(description="run time of a task")
    run_on: dict[str, Duration] = Field(default_factory=dict, description="run times by node type, where they differ")
    at: Duration = Field(default=0.0, description="arrival of the first task")
    every: Duration = Field(default=0.0, description="time between arrivals")
    user: str = Field(default="", description="owner; a path such as research/vision for the policy hierarchy")
    role: str = Field(default="", description="role within the job, such as server or worker")
    priority: Annotated[int, Field(ge=-1000, le=1000)] = Field(
        default=0, description="class; higher goes first (policy priority)"
    )
    deadline: Duration | None = Field(default=None, description="time after the arrival")
    follows: str = Field(default="", description="job that it follows: it runs on nodes of that job (policy affinity)")
    avoids: str = Field(default="", description="job that it avoids: it never joins that job on a node (policy avoid)")
    types: tuple[str, ...] = Field(default=(), description="node types on which it can run (policy types)")
    after: tuple[str, ...] = Field(default=(), description="jobs that must have ended (policy barrier)")
    checkpoint_every: Duration = Field(
        default=0.0,
        description="run time between checkpoints; a preempted task continues from its last one; 0 for none",
    )
    data: tuple[str, ...] = Field(default=(), description="blocks of data that it reads (policy locality)")


class TraceSpec(Model):
    """A recorded workload."""

    trace: TraceFormat = Field(description="format of the file of tasks")
    path: str = Field(description="file of tasks")
    faster: Annotated[float, Field(gt=0, le=1e6)] = Field(
        default=1.0, description="factor by which arrivals are accelerated"
    )
    table: TableSpec = Field(default=TableSpec(), description="how to read a CSV file of tasks")
    user: str = Field(default="qos", description="column of an openb file that names the user")
    first: Count | None = Field(
        default=None, description="read only so many rows; a truncated job keeps the tasks that were read"
    )
    run: Annotated[Duration, Field(gt=0)] | None = Field(
        default=None, description="run time of Kueue's workloads that have not ended; the median of those that have"
    )
    apply: str | None = Field(
        default=None, description="manifests of ClusterQueues, cohorts, LocalQueues or flavors, as if they were applied"
    )


class ManySpec(Model):
    """A generated workload: Poisson arrivals, log-normal run times, demands drawn from a list."""

    random: Count = Field(description="number of tasks")
    rate: Annotated[float, Field(gt=0, le=1e6)] = Field(default=1.0, description="arrivals per second")
    run: Duration = Field(default=60.0, description="mean run time")
    spread: Annotated[float, Field(ge=0, le=5)] = Field(
        default=1.0, description="standard deviation of the logarithm of run times"
    )
    users: Annotated[int, Field(ge=1, le=1000)] = Field(default=4, description="number of users")
    demands: Annotated[tuple[Amounts, ...], Field(min_length=1)] = Field(
        default=({"cpu": 1.0},), description="demands from which each task draws one"
    )


class WorkloadSpec(Model):
    """The tasks to place: listed in the spec, replayed from a trace, or generated."""

    @property
    def is_set(self) -> bool:
        """Whether the spec describes any tasks."""
        return bool(self.tasks or self.replay or self.made)

    tasks: Annotated[tuple[TaskSpec, ...], Field(max_length=10_000)] = Field(
        default=(), description="groups of equal tasks"
    )
    replay: TraceSpec | None = Field(default=None, description="a recorded workload")
    made: ManySpec | None = Field(default=None, description="a generated workload")


class ExplainSpec(Model):
    """The waiting task that the report explains."""

    task: str = Field(description="name of the task to explain")
    at: Duration | None = Field(
        default=None, description="time of the explanation; half-way through the wait by default"
    )


class PlacementSpec(Spec):
    """Places tasks by policies that the application defines itself."""

    kind: Literal["placement"]
    cluster: ClusterSpec
    workload: WorkloadSpec = WorkloadSpec()
    policy: PolicySpec = PolicySpec()
    explain: ExplainSpec | None = None

    def problems(self) -> Iterable[Problem]:
        """Yield contradictions between parts of the spec."""
        yield from _cluster_problems(self.cluster)
        yield from _workload_problems(self.workload)
        yield from self.policy.problems(("policy",))


def _cluster_problems(cluster: ClusterSpec) -> Iterator[Problem]:
    if cluster.kubernetes is not None and cluster.kubernetes.kueue and cluster.kubernetes.shadow:
        yield Problem(
            ("cluster", "kubernetes", "kueue"), "kueue and shadow exclude each other", hint="write one of them"
        )
    live = [key for key in ("ray", "kubernetes") if getattr(cluster, key) is not None]
    sources = [*(key for key in ("nodes", "trace") if getattr(cluster, key)), *live]
    if len(sources) != 1 and sources not in (["nodes", "ray"], ["nodes", "kubernetes"]):
        message = f"{' and '.join(sources)} together" if sources else "no nodes"
        yield Problem(("cluster",), message, hint="write nodes, trace with path, ray: auto, or kubernetes: {}")
    yield from _table_problems(cluster.trace, cluster.table, ("cluster", "table"), NODE_COLUMNS, allows_labels=True)
    if cluster.trace and not cluster.path:
        yield Problem(("cluster",), "a trace needs the path of its file of nodes", hint="write path: FILE")
    for index, event in enumerate(cluster.events):
        if event.lasts is not None and (event.change == "up" or event.lasts <= 0):
            message = "applies to nodes that go down or are cordoned, for longer than 0 s"
            yield Problem(("cluster", "events", index, "lasts"), message, hint="write change: down and lasts: 10 min")
    for index, node in enumerate(cluster.nodes):
        if not (node.cpu or node.gpu or node.memory or node.resources or cluster.ray):
            yield Problem(("cluster", "nodes", index), "the node has no resources", hint="write cpu: 4")


def _table_problems(
    trace: str | None, table: TableSpec, path: tuple[str, ...], columns: Sequence[str], *, allows_labels: bool = False
) -> Iterator[Problem]:
    if table.is_set and trace != "csv":
        yield Problem(path, "only a CSV file has a table", hint="write trace: csv")
    known = (*columns, *table.resources)
    for key, names in (("columns", () if allows_labels else table.columns), ("scale", table.scale)):
        for name in names:
            if name not in known:
                yield Problem((*path, key, name), f"no column {name}", hint=did_you_mean(name, known), at_key=True)
    yield from _missing_problems(table, path, columns)
    for name in table.resources:
        if name in columns:
            hint = f"write columns: {{{name}: ...}}"
            yield Problem((*path, "resources", name), f"{name} is a standard column", hint=hint, at_key=True)


def _missing_problems(table: TableSpec, path: tuple[str, ...], columns: Sequence[str]) -> Iterator[Problem]:
    """Yield the defaults and unknown cells of columns that have none."""
    numbers = {*AMOUNT_COLUMNS, *COUNT_COLUMNS, *table.resources}
    times = [name for name in ("task", *TIME_COLUMNS) if name in columns]
    allowed = [name for name in (*times, *columns, *table.resources) if name in times or name in numbers]
    for key in ("missing", "unknown"):
        for name in getattr(table, key):
            if name not in allowed:
                hint = did_you_mean(name, allowed)
                yield Problem((*path, key, name), f"{name} has no {key} values", hint=hint, at_key=True)
    for name, default in table.missing.items():
        if name not in allowed or _is_default(name, default, is_node="task" not in columns):
            continue
        keywords = MISSING_KEYWORDS.get(name, (SKIP,)) if "task" in columns else ()
        example = {"arrival": "0 s", "run": "10 min"}.get(name, "1" if name in numbers else "")
        hint = f"write {' or '.join(word for word in (*keywords, example) if word)}"
        yield Problem((*path, "missing", name), f"{default!r} is not a default", hint=hint)


def _is_default(column: str, default: str | float, *, is_node: bool) -> bool:
    try:
        return not (isinstance(read_default(column, default), str) and is_node)
    except ValueError:
        return False


def _workload_problems(workload: WorkloadSpec) -> Iterator[Problem]:
    if replay := workload.replay:
        for key in ("run", "apply"):
            if getattr(replay, key) is not None and replay.trace != "kubectl":
                yield Problem(
                    ("workload", "replay", key), "applies to Kueue's objects only", hint="write trace: kubectl"
                )
        yield from _table_problems(replay.trace, replay.table, ("workload", "replay", "table"), TASK_COLUMNS)
    sources = [key for key in ("tasks", "replay", "made") if getattr(workload, key)]
    if len(sources) > 1:
        yield Problem(("workload",), f"{' and '.join(sources)} together", hint="write one of tasks, replay, made")
    jobs = {task.job for task in workload.tasks}
    for index, task in enumerate(workload.tasks):
        path: tuple[Any, ...] = ("workload", "tasks", index)
        if task.run <= 0:
            yield Problem((*path, "run"), "the run time must be above 0", hint="write run: 10 min")
        for key, names in (("follows", (task.follows,)), ("avoids", (task.avoids,)), ("after", task.after)):
            for name in names:
                if name and name not in jobs:
                    yield Problem((*path, key), f"no such job: {name}", hint=did_you_mean(name, jobs))
