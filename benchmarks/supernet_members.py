"""Which of many ONNX models stay in memory: a planned residency against LRU and LFU eviction.

Perceptrons of many sizes are written as ONNX files; latency, load time and memory are measured. A plan is made on one
trace and judged on later ones. Requests demand accuracies by a Zipf law; time is simulated from the measured costs.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from benchmarks.frame import need

MODELS, MEMORY_SHARE = 16, 0.35
SLO_S, ZIPF, LOAD = 0.05, 1.1, 0.7
FEATURES, CLASSES = 64, 10
REQUESTS, LATER = 3000, 5
NAMES = ("planned", "lru", "lfu")


def run(quick: bool, seed: int, data: Path | None) -> dict[str, Any]:  # noqa: ARG001 - needs no data
    """Plan on one trace and judge on later ones.

    Args:
        quick: Fewer models and shorter traces.
        seed: Of weights and traces.
        data: Not needed.

    Returns:
        ``metrics``, ``tables`` and ``notes``.
    """
    need("onnxruntime", "supernet")
    from unfold_supernet.replay.residency import list_contenders, plan_residency, simulate_resident

    with tempfile.TemporaryDirectory() as name:
        members = _measure(Path(name), 5 if quick else MODELS, seed)
    count = 300 if quick else REQUESTS
    problem = _draw(members, count, np.random.default_rng([seed, 0]))
    plan = plan_residency(problem)
    rows = []
    for trace in range(1, 1 + (1 if quick else LATER)):
        later = _draw(members, count, np.random.default_rng([seed, trace]))
        results = [simulate_resident(later, contender) for contender in list_contenders(later, plan)]
        both = [result.outcome.satisfied_fraction for result in results]
        row: dict[str, Any] = {"trace": trace}
        row |= {f"both_targets_{rule}": value for rule, value in zip(NAMES, both, strict=False)}
        row |= {f"load_seconds_{rule}": result.load_s for rule, result in zip(NAMES, results, strict=False)}
        rows.append(row | {"both_targets_best_single": max(both[len(NAMES) :])})
    metrics = {key: fmean(row[key] for row in rows) for key in rows[0] if key != "trace"}
    metrics |= {"models": len(members.profiles), "pinned": len(plan.pinned), "usable": len(plan.usable)}
    costs = [
        {"member": profile.name, "mb": cost.bytes / 1e6, "load_ms": cost.load_s * 1e3,
         "ms_batch_1": profile.estimate_latency(1) * 1e3, "pinned": index in plan.pinned}
        for index, (profile, cost) in enumerate(zip(members.profiles, members.costs, strict=True))
    ]  # fmt: skip
    return {"metrics": metrics, "tables": {"traces": rows, "members": costs}, "notes": _notes()}


def _measure(folder: Path, count: int, seed: int) -> Any:
    from unfold_supernet.members.files import MemberFile
    from unfold_supernet.members.profile import MemberList, measure_members
    from unfoldkit.api import RunDir

    rng = np.random.default_rng(seed)
    accuracies = np.linspace(70, 95, count)
    files = []
    for index, width in enumerate(np.geomspace(200, 2000, count).astype(int)):
        path = folder / f"m{index:02d}.onnx"
        path.write_bytes(_perceptron(int(width), rng))
        files.append(MemberFile(name=path.stem, path=path, accuracy=float(accuracies[index]), key=f"members[{index}]"))
    listed = MemberList(name="many", files=tuple(files), classes=(), memory_bytes=None)
    members = measure_members(listed, RunDir(folder / "run"), lambda *_: None)
    return replace(members, memory_bytes=int(members.needed_bytes * MEMORY_SHARE))


def _perceptron(width: int, rng: np.random.Generator) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    nodes, tensors, last, fan_in = [], [], "x", FEATURES
    for index, fan_out in enumerate((width, width, CLASSES)):
        weight = (rng.normal(size=(fan_in, fan_out)) / np.sqrt(fan_in)).astype(np.float32)
        tensors.append(numpy_helper.from_array(weight, f"w{index}"))
        nodes.append(helper.make_node("MatMul", [last, f"w{index}"], [f"h{index}"]))
        last, fan_in = f"h{index}", fan_out
    nodes[-1].output[0] = "y"
    inputs, outputs = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size])]
        for name, size in (("x", FEATURES), ("y", CLASSES))
    )
    graph = helper.make_graph(nodes, "net", inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def _draw(members: Any, count: int, rng: np.random.Generator) -> Any:
    """Draw a trace: Poisson arrivals that keep a server busy for a share of the time, accuracies by a Zipf law."""
    from unfold_supernet.replay.problem import ReplayProblem, ServingOptions
    from unfold_supernet.scheduling.requests import RequestTargets

    profiles = members.profiles
    order = np.random.default_rng(len(profiles)).permutation(len(profiles))
    popularity = 1.0 / (1 + np.arange(len(profiles))) ** ZIPF
    wanted = order[rng.choice(len(profiles), count, p=popularity / popularity.sum())]
    rate = LOAD / np.mean([profiles[index].estimate_latency(1) for index in wanted])
    options = ServingOptions(
        slo_s=SLO_S, policy="steady", backend="cpu", load=None, min_attainment=0.9, escalate_below=None, guard={}
    )
    return ReplayProblem(
        name="many",
        options=options,
        arrivals=np.cumsum(rng.exponential(1 / rate, count)),
        profiles=profiles,
        switch_s=None,
        seed=0,
        targets=RequestTargets(np.full(count, SLO_S), np.array([profiles[i].accuracy_fraction for i in wanted])),
        costs=members.costs,
        memory_bytes=members.memory_bytes,
    )


def _notes() -> list[str]:
    return [
        f"Memory holds {MEMORY_SHARE:.0%} of what all models need; LRU and LFU start empty and load on demand.",
        "All rules share the scheduling policy, in which a load counts against the deadline.",
        f"The plan comes from another trace than the {LATER} on which it is judged.",
        "Latency, load time and memory of every model are measured, on one thread.",
    ]
