"""For programs on Ray: submit functions to a policy that is served, and use names that are put on nodes.

from unfold_placement import ray as unfold

unfold.init("auto")
done = [unfold.submit(train, part, policy="gangs", job="a", size=8, gpu=1) for part in parts]
results = [future.result() for future in done]
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

from unfold_placement.core.types import MILLI, Task
from unfold_placement.ray.backend import RayBackend, call_coordinator, connect_ray, start_coordinator
from unfold_placement.ray.client import Client, get_client
from unfold_placement.ray.placement_groups import BUDGET
from unfoldkit.api import fail

NUMBERS = itertools.count()


def init(address: str = "auto", policy: str = "default") -> RayBackend:
    """Connect this process to a Ray cluster; return a handle on the names and tasks of a served policy.

    Raises:
        UnfoldError: no cluster answers, or its nodes have no budget for names.
    """
    return connect_ray(address, policy)


def submit(
    function: Any, *args: Any, policy: str, name: str = "", job: str = "", size: int = 1, cpu: float = 1.0,
    gpu: float = 0.0, memory: float = 0.0, resources: Mapping[str, float] | None = None, user: str = "",
    role: str = "", priority: int = 0, run: float = 60.0, deadline: float = math.inf, follows: str = "",
    avoids: str = "", after: tuple[str, ...] = (), data: tuple[str, ...] = (), types: tuple[str, ...] = (),
    **kwargs: Any,
) -> Future[Any]:  # fmt: skip
    """Submit a call of a function, or of a Ray remote function, to the policy of a spec that is served.

    ``policy`` is the spec's name. The function runs where and when the policy says; the future holds what it returns
    or raises, and ``cancel`` takes it back. ``cpu``, ``gpu``, ``memory`` (MiB) and ``resources`` are its demand,
    ``run`` is how long (s) it is expected to take, ``deadline`` how long (s) from now it has; ``size`` is the number
    of tasks of its job. The rest is what policies look at, as in a spec. What is preempted, or whose
    worker dies, runs again.
    """
    plain = {"cpu": cpu, "gpu": gpu, "memory": memory, **(resources or {})}
    demand = {kind: math.ceil(amount * MILLI) for kind, amount in plain.items() if amount}
    client = _client(policy, _job())
    # processes of two containers have the same number
    own = name or f"{job or 'task'}-{client.name[:8]}-{next(NUMBERS)}"
    task = Task(
        own, demand, run, 0.0, job or own, user, role, size, priority, deadline, follows, avoids, after, data,
        types=types,
    )  # fmt: skip
    return client.submit(task, function, *args, **kwargs)


def close(policy: str) -> None:
    """End what this process waits for under a policy; call it before ``ray.shutdown``. At exit it happens by itself."""
    _client(policy, _job()).close()


@functools.cache
def _client(policy: str, _job: str) -> Client:
    return get_client(start_coordinator(policy))


def _job() -> str:
    import ray

    return str(ray.get_runtime_context().get_job_id())


def within(name: str, node: str, policy: str, amount: float = 1.0) -> dict[str, Any]:
    """Return the options of a Ray task that asks for a name on a node, and for no other.

    Ray itself counts the name then. Use it as ``function.options(**within(...)).remote()``.

    Raises:
        UnfoldError: the name is not there.
    """
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    group = call_coordinator(start_coordinator(policy), "within", name, node)
    if amount <= 0:
        raise fail("a task asks for some of a name", hint="amount=1")
    return {
        "num_cpus": 0, "resources": {BUDGET: amount}, "max_retries": 0,
        "scheduling_strategy": PlacementGroupSchedulingStrategy(group, 0),
    }  # fmt: skip
