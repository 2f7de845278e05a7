"""Single rows per second over HTTP and gRPC on one core, with one model: this server, a hand-built one, and products.

An XGBoost classifier (100 trees of depth 6, 30 features), as a joblib file for the products and as an ONNX file, which
answers the same, for the project's server and the hand-built one. Each server in turn on one core, the generator on
another. Over HTTP also as raw bytes and compressed, with and without the fast path; over gRPC see ``grpc_load.py``.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import grpc_load
from benchmarks.bodies import BODY, form, probabilities
from benchmarks.grpc_load import MLSERVER, GrpcResult, build_bench, measure_grpc
from benchmarks.servers import (
    Generator,
    Peer,
    ask_raw,
    cores,
    generator,
    grpc_generator,
    memory_mib,
    report_failure,
    started,
    write_requests,
)

WIDTH, CONNECTIONS, BODIES = 30, 32, 256
HERE = "benchmarks.peers."
PORT = ("--port", "{port}")
UVICORN = ("{python}", "-m", "uvicorn", "--factory", "--no-access-log", "--log-level", "error", *PORT)
FASTAPI = ("fastapi", "uvicorn", "uvloop", "httptools")
INFER = "/v2/models/m/infer"
MLSERVER_PORTS = {**grpc_load.MLSERVER_PORTS, "MLSERVER_HTTP_PORT": "{port}", "MLSERVER_GRPC_PORT": "{other}"}
KSERVE = Peer(
    "KServe",
    ("{python}", "benchmarks/peers/kserve_app.py", "--http_port", "{port}", "--grpc_port", "{other}",
     "--enable_latency_logging", "false"),
    INFER, "v2", "/v2/health/ready", ("kserve",),
)  # fmt: skip
OURS = Peer("unfold", ("{python}", "-m", f"{HERE}ours", "{port}"), INFER, "v2", "/v2/health/ready")
BY_HAND = Peer(
    "starlette by hand, ONNX Runtime",
    (*UVICORN, f"{HERE}starlette_app:create"),
    INFER, "v2", more={"ENGINE": "onnx"},
    packages=("starlette", "uvicorn", "uvloop", "httptools", "orjson", "onnxruntime"),
)  # fmt: skip
PRODUCTS = (
    Peer("FastAPI + joblib", (*UVICORN, f"{HERE}fastapi_app:create"), "/predict", packages=FASTAPI),
    Peer("FastAPI + joblib, async def", (*UVICORN, f"{HERE}fastapi_app:create"), "/predict-async", packages=FASTAPI),
    *(
        Peer(f"LitServe, batch {batch}", ("{python}", "benchmarks/peers/litserve_app.py", "{port}"), "/predict",
             ready="/health", packages=("litserve", "uvloop", "httptools"), more={"BATCH": str(batch)})
        for batch in (1, 32)
    ),
    *(
        Peer(f"BentoML, {way}", ("{python}", "-m", "bentoml", "serve", f"{HERE}bentoml_service:Service", *PORT),
             f"/{path}", body, "/livez", ("bentoml",), {"BENTOML_DO_NOT_TRACK": "True"})
        for way, path, body in (("batches", "predict", "rows"), ("one by one", "single", "features"))
    ),
    *(
        Peer(f"MLServer, {way}", ("{python}", "-c", MLSERVER, "start", "{folder}/" + folder), INFER, "v2",
             "/v2/health/ready", ("mlserver", "uvloop<0.22", "httptools"), MLSERVER_PORTS)
        for way, folder in (("one by one", "single"), ("batches of 32", "batches"))
    ),
    KSERVE,
    Peer("Ray Serve, batches of 32", ("{python}", "benchmarks/peers/ray_app.py", "{port}"), "/",
         packages=("ray[serve]",)),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Seconds:
    """How long each part is driven, and how many rounds there are: of ours beside another server, and of forms."""

    warm: float
    product: float
    round: float
    rounds: int
    steady: float
    forms: int


def run(quick: bool, seed: int, data: Path | None) -> dict[str, Any]:
    """Fit the model, drive every product in turn, then ours and the hand-built server by turns, then ours at half.

    Args:
        quick: Only FastAPI among the products, and shorter.
        seed: Seed of data, model and arrivals.
        data: Not used.
    """
    del data
    plan = Seconds(0.3, 1.0, 1.0, 2, 2.0, 1) if quick else Seconds(1.0, 4.0, 4.0, 5, 10.0, 3)
    server_core, driver_core = cores()
    with tempfile.TemporaryDirectory() as name, generator(driver_core) as driver, grpc_generator(driver_core) as caller:
        folder = Path(name)
        bench = Bench(folder, driver, server_core, prepare(folder, seed), plan)
        calls = build_bench(folder, caller, server_core, bench.environment, plan.warm)
        products = {peer.name: bench.product(peer) for peer in (PRODUCTS[:2] if quick else PRODUCTS)}
        rounds, half, memory = bench.duel(seed)
        forms = bench.forms(() if quick else (replace(KSERVE, body="binary"),))
        others = () if quick else grpc_load.PRODUCTS
        grpc = measure_grpc(calls, others, plan.rounds, plan.round)
    found = _summary(products, rounds, half, memory, quick=quick)
    found["metrics"] |= forms.metrics | grpc.metrics
    found["aims"] |= {"grpc_product_ratio": "≥ 5"}
    found["tables"] |= {"forms": forms.rows, "grpc": grpc.rows, "grpc_rounds": list(_rows(grpc.rounds))}
    found["notes"] += [*_form_notes(forms), *_grpc_notes(grpc)]
    return found


@dataclass(frozen=True, slots=True)
class Bench:
    """What all servers are driven with; ``environment`` says where the model is."""

    folder: Path
    driver: Generator
    core: int
    environment: Mapping[str, str]
    seconds: Seconds

    def product(self, peer: Peer) -> dict[str, Any]:
        """Return what a product gives, or nulls and why it cannot be measured."""
        try:
            with started(peer, self.core, self.environment, self.folder / "log") as (port, process):
                self._same(peer, port)
                found = self._saturated(peer, port, self.seconds.product)
                return found | {"memory_mib": memory_mib(process)}
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            return report_failure(f"serve-load: {peer.name}", error)

    def duel(self, seed: int) -> tuple[list[dict[str, dict[str, Any]]], dict[str, Any], dict[str, float]]:
        """Return the rounds of ours and the hand-built server, both up at once, then ours at half of its rate."""
        with ExitStack() as stack:
            up = {
                peer.name: (peer, *stack.enter_context(started(peer, self.core, self.environment, self.folder / name)))
                for peer, name in ((OURS, "ours"), (BY_HAND, "by-hand"))
            }
            for peer, port, _ in up.values():
                self._same(peer, port)
            rounds = [
                {name: self._saturated(peer, port, self.seconds.round) for name, (peer, port, _) in up.items()}
                for _ in range(self.seconds.rounds)
            ]
            rate = statistics.median(one[OURS.name]["requests_per_s"] for one in rounds) / 2
            phases = [(rate, self.seconds.warm), (rate, self.seconds.steady)]
            found = self.driver.drive(up[OURS.name][1], self.folder / "v2", CONNECTIONS, phases, seed)["phases"][1]
            return rounds, found, {name: memory_mib(process) for name, (_, _, process) in up.items()}

    def forms(self, products: Sequence[Peer]) -> FormResult:
        """Return rounds of ours with and without the fast path, by each form of a body, and what products give."""
        servers = {name: replace(OURS, name=f"unfold, {name}", more={"FAST_PATH": on}) for name, on in FAST_PATHS}
        with ExitStack() as stack:
            ports = {
                name: stack.enter_context(started(peer, self.core, self.environment, self.folder / f"fast-{number}"))[0]
                for number, (name, peer) in enumerate(servers.items())
            }
            rounds = [
                {
                    (which, name): self._by_form(peer, ports[name], which)
                    for which in FORMS
                    for name, peer in servers.items()
                }
                for _ in range(self.seconds.forms)
            ]
        return FormResult(rounds, {peer.name: self.product(peer) for peer in products})

    def _by_form(self, peer: Peer, port: int, which: str) -> float:
        formed = replace(peer, body=which, name=f"{peer.name}, {which}")
        self._same(formed, port)
        return float(self._saturated(formed, port, self.seconds.round)["requests_per_s"])

    def _saturated(self, peer: Peer, port: int, seconds: float) -> dict[str, Any]:
        headers = form(peer.body, WIDTH).headers
        requests = write_requests(self.folder / "requests", peer.path, self._bodies(peer), headers)
        found = self.driver.drive(port, requests, CONNECTIONS, [(0, self.seconds.warm), (0, seconds)])
        last = found["phases"][1]
        if last["refused"] or last["other"] or last["broken"] or not last["ok"]:
            raise RuntimeError(f"not every request was answered: {last}")
        rate = last["ok"] / seconds
        sys.stderr.write(f"serve-load: {peer.name}: {rate:,.0f} a second\n")
        return {
            "requests_per_s": rate, "p50_ms": last["ok_p50_ms"], "p99_ms": last["ok_p99_ms"],
            "driver_busy": found["busy"],
        }  # fmt: skip

    def _bodies(self, peer: Peer) -> list[bytes]:
        rows = np.load(self.folder / "rows.npy").tolist()
        return [form(peer.body, WIDTH).encode(row) for row in rows]

    def _same(self, peer: Peer, port: int) -> None:
        """Stop unless the server answers what the model says, in single precision."""
        said = np.load(self.folder / "said.npy")[:8]
        headers = form(peer.body, WIDTH).headers
        answers = [ask_raw(port, peer.path, body, headers) for body in self._bodies(peer)[:8]]
        found = np.array([probabilities(*answer) for answer in answers])
        if found.shape != said.shape or np.abs(found - said).max() > 1e-5:
            raise RuntimeError(f"{peer.name} does not answer what the model says: {answers[0]}")


@dataclass(frozen=True, slots=True)
class FormResult:
    """Requests a second by form and server in each round, and what products gave for raw bytes."""

    rounds: Sequence[Mapping[tuple[str, str], float]]
    products: Mapping[str, dict[str, Any]]

    @property
    def metrics(self) -> dict[str, Any]:
        """The metrics of raw bytes and compressed bodies, and what the fast path brings each form."""
        middle = {key: statistics.median(one[key] for one in self.rounds) for key in self.rounds[0]}
        best = max((found["requests_per_s"] or 0.0 for found in self.products.values()), default=0.0) or None
        fast = {which: middle[which, "fast path"] for which in FORMS}
        gains = {f"fast_path_ratio_{name}": fast[w] / middle[w, "ASGI"] for w, name in FORMS.items()}
        return {
            "binary_requests_per_s": fast["binary"],
            "best_binary_product_requests_per_s": best,
            "binary_product_ratio": best and fast["binary"] / best,
            "gzip_requests_per_s": fast["gzip"],
            **gains,
        }

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One row per round, form and server."""
        ours = [
            {"round": number, "body": FORMS[which], "server": f"unfold, {name}", "requests_per_s": rate}
            for number, one in enumerate(self.rounds, 1)
            for (which, name), rate in one.items()
        ]
        others = [
            {"round": 1, "body": FORMS["binary"], "server": name, "requests_per_s": found["requests_per_s"]}
            for name, found in self.products.items()
        ]
        return ours + others


FORMS = {"v2": "json", "binary": "binary", "gzip": "gzip"}
FAST_PATHS = (("fast path", "1"), ("ASGI", "0"))


def prepare(folder: Path, seed: int) -> dict[str, str]:
    """Fit the model and write it in both forms, with rows to send and what it says of them; return where they are."""
    import joblib
    from sklearn.datasets import make_classification
    from xgboost import XGBClassifier

    x, y = make_classification(6000, WIDTH, n_informative=15, random_state=seed)
    model = XGBClassifier(n_estimators=100, max_depth=6, n_jobs=1, random_state=seed).fit(x[:5000], y[:5000])
    rows = x[5000 : 5000 + BODIES].astype(np.float32).astype(float).round(4)
    np.save(folder / "rows.npy", rows)
    np.save(folder / "said.npy", model.predict_proba(rows.astype(np.float32)))
    joblib.dump(model, folder / "model.joblib")
    (folder / "model.onnx").write_bytes(_onnx(model))
    write_requests(folder / "v2", INFER, [json.dumps(BODY["v2"](row)).encode() for row in rows.tolist()])
    for name, batch in (("single", {}), ("batches", {"max_batch_size": 32, "max_batch_time": 0.005})):
        (folder / name).mkdir()
        settings = {"name": "m", "implementation": "mlserver_model.Model", **batch}
        (folder / name / "model-settings.json").write_text(json.dumps(settings))
    at = {"PEER_MODEL": folder / "model.joblib", "PEER_ONNX": folder / "model.onnx"}
    return {"WIDTH": str(WIDTH), "CLASSES": "2", **{name: str(path) for name, path in at.items()}}


def _onnx(model: Any) -> bytes:
    import onnxmltools
    from onnxmltools.convert.common.data_types import FloatTensorType

    made = onnxmltools.convert_xgboost(model, initial_types=[("x", FloatTensorType([None, WIDTH]))], target_opset=15)
    return bytes(made.SerializeToString())


def _summary(
    products: Mapping[str, dict[str, Any]],
    rounds: Sequence[Mapping[str, dict[str, Any]]],
    half: Mapping[str, Any],
    memory: Mapping[str, float],
    *,
    quick: bool,
) -> dict[str, Any]:
    middle = {name: _middle([one[name] for one in rounds]) | {"memory_mib": memory[name]} for name in rounds[0]}
    best = max((found["requests_per_s"] or 0.0) for found in products.values()) or None
    ours, hand = middle[OURS.name], middle[BY_HAND.name]
    ratios = [one[OURS.name]["requests_per_s"] / one[BY_HAND.name]["requests_per_s"] for one in rounds]
    return {
        "metrics": {
            "requests_per_s": ours["requests_per_s"],
            "best_product_requests_per_s": best,
            "product_ratio": best and ours["requests_per_s"] / best,
            "starlette_ratio": statistics.median(ratios),
            "starlette_ratio_min": min(ratios),
            "p50_ms_half_load": half["ok_p50_ms"],
            "p99_ms_half_load": half["ok_p99_ms"],
            "half_load_requests_per_s": half["rate"],
            "driver_busy": ours["driver_busy"],
            "memory_mib": ours["memory_mib"],
        },
        "peers": {**products, BY_HAND.name: hand},
        "tables": {"rounds": list(_rows(rounds))},
        "aims": {"product_ratio": "≥ 10", "starlette_ratio": "≥ 1.3", "p99_ms_half_load": "≤ 5"},
        "notes": list(_notes(products, quick=quick)),
    }


def _middle(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {key: statistics.median(one[key] for one in found) for key in found[0]}


def _rows(rounds: Sequence[Mapping[str, dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    for number, one in enumerate(rounds, 1):
        yield from ({"round": number, "server": name, **found} for name, found in one.items())


def _notes(products: Mapping[str, dict[str, Any]], *, quick: bool) -> Iterator[str]:
    yield "one core for the server, another for the generator; before, eight answers are compared with the model's own"
    yield "the products run XGBoost through joblib, as their users do; ours and the hand-built server ONNX Runtime"
    yield f"saturated: closed loop, {CONNECTIONS} connections; at half load: open loop, counted from when each was due"
    yield "driver_busy near 1: the generator bounds the figure, not the server"
    yield "memory_mib of a product is that of its first process"
    if quick:
        yield "quick: of the products only FastAPI was measured"
    yield from (f"{name} could not be measured: {found['note']}" for name, found in products.items() if "note" in found)


def _form_notes(forms: FormResult) -> Iterator[str]:
    yield "binary: a raw FP32 tensor after the JSON, and raw bytes back; of the products KServe alone takes it"
    yield "fast_path_ratio: requests a second with the HTTP fast path against those by ASGI, medians of rounds by turns"
    yield from (f"{name}, binary: {found['note']}" for name, found in forms.products.items() if "note" in found)


def _grpc_notes(grpc: GrpcResult) -> Iterator[str]:
    yield from grpc_load.NOTES
    if not grpc.products:
        yield "quick: no product was measured over gRPC"
    yield from (f"{name} over gRPC: {found['note']}" for name, found in grpc.products.items() if "note" in found)
