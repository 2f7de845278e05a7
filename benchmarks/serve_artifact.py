"""A cascade as one ONNX graph against the cascade server: rows a second over HTTP, and equal answers.

Both are served by the same HTTP server, on the same core, and driven in turn by the same clients. The graph is
what ``unfold export`` writes; behind the server it is one call of ONNX Runtime.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.recorded_graph import answer_by_graph, read_recorded, replay
from benchmarks.servers import Peer, ask, cores, started
from unfoldkit.serving.model import Batch, Field, Predictions

ROOT = Path(__file__).parents[1]
SPEC = ROOT / "configs" / "cascade" / "digits.yaml"
QUICK = ("baseline.candidates=[{estimator: svc, params: {C: 10, gamma: 0.001}, scale: false}]", "gates.folds=2")
SIZES = (1, 64)
"""Rows per request."""
INFER = "/v2/models/digits/infer"
API_LOGS = ROOT / "configs" / "cascade" / "api-logs.yaml"
RECORDED = (
    "differing_api_logs: label and cost of all {count} recorded cases, a graph of the plan's gates against the plan"
)
NOT_EXPORTED = "api-logs has no fitted model that `unfold export` could write; each service is a node with its record"


@dataclass(frozen=True, slots=True)
class GraphModel:
    """One ONNX graph as a model of the server."""

    session: Any
    inputs: tuple[Field, ...]
    name: str = "digits"
    version: str = "1"
    outputs: tuple[Field, ...] = (Field("label", "BYTES"), Field("cost"))
    facts: Mapping[str, Any] = field(default_factory=dict)

    def predict(self, batch: Batch) -> Predictions:
        """Answer a batch by one call of the runtime."""
        label, cost = self.session.run(["label", "cost"], {"x": batch.inputs["x"]})
        return Predictions({"label": label.tolist(), "cost": cost})


def run(quick: bool, seed: int, data: Path | None) -> dict[str, Any]:
    """Train and export the digits, compare all 1,797 answers, then measure both in turn.

    Args:
        quick: Fewer and shorter rounds; fewer candidates are fitted.
        seed: Seed of the split.
        data: Not used.
    """
    del data
    from sklearn.datasets import load_digits

    rows = load_digits().data
    seconds, rounds = (0.5, 2) if quick else (3.0, 5)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        words = [word for text in QUICK if quick for word in ("--set", text)]
        _unfold("train", SPEC, "--run", folder / "run", "--seed", seed, "--exit-zero", *words)
        _unfold("export", folder / "run", "--out", folder / "digits.onnx")
        core, driver_core = cores()
        ports, environment = {}, {"OMP_NUM_THREADS": "1"}
        serve = (sys.executable, "-m", "unfoldkit", "serve", str(folder / "run"), "--port", "{port}")
        graph = (sys.executable, "-m", "benchmarks.serve_artifact", str(folder / "digits.onnx"), "{port}")
        for label, command in (("cascade", serve), ("graph", graph)):
            peer = Peer(label, command, INFER, ready="/v2/health/ready")
            ports[label] = stack.enter_context(started(peer, core, environment, folder / f"{label}.log"))[0]
        answers = {label: _ask_all(port, rows) for label, port in ports.items()}
        differing = _count_differing(*answers.values())
        logs, log_rows = _compare_api_logs(folder, seed)
        measured = [
            {
                (label, size): _drive(port, _write_bodies(folder, rows, size), size, driver_core, seconds)
                for size in SIZES
                for label, port in ports.items()
            }
            for _ in range(rounds)
        ]
    found = _summarize(measured, differing, len(rows))
    found["metrics"]["differing_api_logs"] = logs
    found["aims"]["differing_api_logs"] = "0"
    found["notes"] += [RECORDED.format(count=log_rows), NOT_EXPORTED]
    return found


def _count_differing(one: Sequence[Any], other: Sequence[Any]) -> int:
    return sum(a != b for a, b in zip(one, other, strict=True))


def _compare_api_logs(folder: Path, seed: int) -> tuple[int, int]:
    """Return how many answers of a graph differ from the plan of the recorded services, and of how many."""
    _unfold("train", API_LOGS, "--run", folder / "api-logs", "--seed", seed, "--exit-zero")
    recorded = read_recorded(folder / "api-logs" / "plan.yaml", API_LOGS.with_suffix(".csv"))
    planned = replay(recorded)
    return _count_differing(answer_by_graph(recorded), planned), len(planned)


def _unfold(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "unfoldkit", *map(str, words)], check=True, stdout=subprocess.DEVNULL)


def _format_request(rows: Any) -> bytes:
    tensor = {"name": "x", "shape": list(rows.shape), "datatype": "FP64", "data": rows.ravel().tolist()}
    return json.dumps({"inputs": [tensor]}).encode()


def _ask_all(port: int, rows: Any) -> list[tuple[str, float]]:
    """Return label and cost of every row."""
    answers: list[tuple[str, float]] = []
    for start in range(0, len(rows), 64):
        outputs = ask(port, INFER, _format_request(rows[start : start + 64]))["outputs"]
        columns = {item["name"]: item["data"] for item in outputs}
        answers += [(str(label), round(cost, 6)) for label, cost in zip(columns["label"], columns["cost"], strict=True)]
    return answers


def _write_bodies(folder: Path, rows: Any, size: int) -> Path:
    path = folder / f"bodies-{size}"
    if not path.exists():
        starts = range(0, len(rows) - size + 1, size)
        path.write_bytes(b"\n".join(_format_request(rows[start : start + size]) for start in starts))
    return path


def _drive(port: int, bodies: Path, size: int, core: int, seconds: float) -> float:
    """Return rows a second of a server under 16 connections."""
    words = [sys.executable, "-m", "benchmarks.load", f"http://127.0.0.1:{port}{INFER}", str(bodies)]
    settings = ["--seconds", str(seconds), "--warm", "0.2", "--connections", "16"]
    driver = subprocess.Popen([*words, *settings], cwd=ROOT, stdout=subprocess.PIPE)
    os.sched_setaffinity(driver.pid, {core})
    output, _ = driver.communicate(timeout=seconds + 60)
    result = json.loads(output)
    if driver.returncode or result["broken"] or set(result["answers"]) != {"200"}:
        raise RuntimeError(str(result))
    return float(result["requests_per_s"]) * size


def _open_graph(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _summarize(measured: Sequence[Mapping[tuple[str, int], float]], differing: int, count: int) -> dict[str, Any]:
    middle = {key: statistics.median(one[key] for one in measured) for key in measured[0]}
    ratios = {size: [one["graph", size] / one["cascade", size] for one in measured] for size in SIZES}
    table = [
        {"round": number, "server": label, "rows_per_request": size, "rows_per_s": rate}
        for number, one in enumerate(measured, 1)
        for (label, size), rate in one.items()
    ]
    return {
        "metrics": {
            "ratio": middle["graph", SIZES[-1]] / middle["cascade", SIZES[-1]],
            "ratio_min": min(ratios[SIZES[-1]]),
            "ratio_max": max(ratios[SIZES[-1]]),
            "ratio_single_rows": middle["graph", SIZES[0]] / middle["cascade", SIZES[0]],
            "graph_rows_per_s": middle["graph", SIZES[-1]],
            "cascade_rows_per_s": middle["cascade", SIZES[-1]],
            "differing": differing,
        },
        "tables": {"rounds": table},
        "aims": {"ratio": "≥ 1.5", "differing": "0"},
        "notes": [
            f"differing: label and cost of all {count} digits, graph against service",
            "ratio: requests of 64 rows as JSON, 16 connections; medians of interleaved rounds; one core for both",
            "the cascade server returns the whole route of each row, the graph its label and cost",
        ],
    }


def main() -> None:
    """Serve a graph: ``python -m benchmarks.serve_artifact GRAPH PORT``."""
    from unfoldkit.serving.http.address import Address, open_listener
    from unfoldkit.serving.http.server import run_service
    from unfoldkit.serving.oip.app import build_application, build_service

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("graph", type=Path)
    parser.add_argument("port", type=int)
    options = parser.parse_args()
    session = _open_graph(options.graph)
    width = int(session.get_inputs()[0].shape[1])
    service = build_service("graph", build_application([GraphModel(session, (Field("x", "FP64", (width,)),))]))
    with open_listener(Address(port=options.port)) as listener:
        run_service(service, listener)


if __name__ == "__main__":
    main()
