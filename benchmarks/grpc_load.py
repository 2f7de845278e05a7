"""Single rows a second over gRPC on one core: a part of ``serve-load``.

The calls of the Open Inference Protocol with raw tensors, by a generator in C that speaks HTTP/2 itself. It compares
every answer with those that the same request had before; each that differs is decoded here and compared with the model.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bodies import TYPES
from benchmarks.servers import GrpcGenerator, Peer, memory_mib, report_failure, started, write_messages
from unfoldkit.serving.grpc.messages import SERVICE, Messages, build_messages

METHOD = f"/{SERVICE}/ModelInfer"
SHAPE = (4, 8)
"""Connections, and calls at a time on each: as many rows under way as over HTTP."""
HERE = "benchmarks.peers."
READY = "/v2/health/ready"
MLSERVER = "from mlserver.cli import main; main()"
MLSERVER_PORTS = {
    "MLSERVER_HTTP_PORT": "{other}", "MLSERVER_GRPC_PORT": "{port}", "MLSERVER_METRICS_PORT": "{third}",
    "MLSERVER_HOST": "127.0.0.1", "MLSERVER_PARALLEL_WORKERS": "0", "MLSERVER_DEBUG": "false",
    "PYTHONPATH": "benchmarks/peers",
}  # fmt: skip
KSERVE_WORDS = (
    *("{python}", "benchmarks/peers/kserve_app.py", "--http_port", "{other}", "--grpc_port", "{port}"),
    *("--enable_latency_logging", "false"),
)
OURS = Peer(
    "unfold", ("{python}", "-m", f"{HERE}ours", "{other}"), METHOD,
    ready=READY, ready_port="other", more={"GRPC_PORT": "{port}"},
)  # fmt: skip
EMPTY = Peer(
    "empty gRPC servicer", ("{python}", "-m", f"{HERE}empty_grpc", "{port}", "{folder}/empty"), METHOD, ready=""
)
PRODUCTS = (
    *(
        Peer(f"MLServer, {way}", ("{python}", "-c", MLSERVER, "start", "{folder}/" + folder), METHOD,
             ready=READY, ready_port="other", packages=("mlserver", "uvloop<0.22", "httptools"), more=MLSERVER_PORTS)
        for way, folder in (("one by one", "single"), ("batches of 32", "batches"))
    ),
    Peer("KServe", KSERVE_WORDS, METHOD, ready=READY, ready_port="other", packages=("kserve",)),
)  # fmt: skip
NOTES = (
    "gRPC: raw FP32 tensors, 4 connections of 8 calls each; every answer is compared with what the model says",
    "of the products MLServer and KServe have this protocol over gRPC; FastAPI, LitServe, BentoML and Ray Serve do not",
    "grpc_product_ratio: the least median of ours against a product, both up at once and driven by turns",
    "empty gRPC servicer: what grpc.aio, which all products use, gives where no code of a server runs",
)


@dataclass(frozen=True, slots=True)
class GrpcBench:
    """What all servers of gRPC are driven with; ``folder`` holds the rows and what the model says of them."""

    folder: Path
    driver: GrpcGenerator
    core: int
    environment: Mapping[str, str]
    warm: float
    messages: Messages

    def product(self, peer: Peer, count: int, seconds: float) -> dict[str, Any]:
        """Return what a product gives, and the ratio of ours, by turns with it; or nulls and why it is not measured."""
        try:
            with ExitStack() as stack:
                port, process = stack.enter_context(self._start(peer))
                our_port, _ = stack.enter_context(self._start(OURS))
                pairs = [(self._drive(peer, port, seconds), self._drive(OURS, our_port, seconds)) for _ in range(count)]
                middle = {key: statistics.median(theirs[key] for theirs, _ in pairs) for key in COLUMNS}
                ratio = statistics.median(ours["requests_per_s"] / theirs["requests_per_s"] for theirs, ours in pairs)
                return middle | {"ratio": ratio, "memory_mib": memory_mib(process)}
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            return report_failure(f"serve-load: gRPC: {peer.name}", error)

    def _start(self, peer: Peer) -> AbstractContextManager[tuple[int, int]]:
        log = self.folder / f"grpc-{peer.name.replace(' ', '-')}"
        return started(peer, self.core, self.environment, log)

    def rounds(self, count: int, seconds: float) -> list[dict[str, dict[str, Any]]]:
        """Return rounds of ours and the empty servicer, both up at once."""
        rows, said = np.load(self.folder / "rows.npy"), np.load(self.folder / "said.npy")
        (self.folder / "empty").write_bytes(self._answer(said[0]))
        requests = [self._request(str(number), row) for number, row in enumerate(rows)]
        write_messages(self.folder / "calls", requests)
        with ExitStack() as stack:
            up = [(peer, stack.enter_context(self._start(peer))[0]) for peer in (OURS, EMPTY)]
            return [{peer.name: self._drive(peer, port, seconds) for peer, port in up} for _ in range(count)]

    def _drive(self, peer: Peer, port: int, seconds: float) -> dict[str, Any]:
        calls = self.folder / "calls"
        found, answers = self.driver.drive(port, METHOD, calls, SHAPE, self.warm, seconds)
        if found["failed"] or found["broken"] or found["unlike"] or not found["ok"]:
            raise RuntimeError(f"not every call was answered: {found}")
        if peer is not EMPTY:
            self._compare(peer, answers)
        rate = found["ok"] / seconds
        sys.stderr.write(f"serve-load: gRPC: {peer.name}: {rate:,.0f} a second\n")
        return {
            "requests_per_s": rate, "p50_ms": found["ok_p50_ms"], "p99_ms": found["ok_p99_ms"],
            "driver_busy": found["busy"],
        }  # fmt: skip

    def _compare(self, peer: Peer, answers: Sequence[tuple[int, bytes]]) -> None:
        """Stop unless each answer is what the model says of its row, in single precision."""
        said = np.load(self.folder / "said.npy")
        for number, raw in answers:
            response = self.messages.ModelInferResponse.FromString(raw)
            if response.id != str(number) or np.abs(self._values(response) - said[number]).max() > 1e-5:
                raise RuntimeError(f"{peer.name} does not answer what the model says: {response}")

    def _values(self, response: Any) -> Any:
        (output,) = response.outputs
        if response.raw_output_contents:
            return np.frombuffer(response.raw_output_contents[0], TYPES[output.datatype])
        return np.array(output.contents.fp64_contents or output.contents.fp32_contents)

    def _request(self, name: str, row: Any) -> bytes:
        raw = row.astype(TYPES["FP32"]).tobytes()
        request = self.messages.ModelInferRequest(model_name="m", id=name, raw_input_contents=[raw])
        request.inputs.add(name="x", datatype="FP32", shape=[1, len(row)])
        return bytes(request.SerializeToString())

    def _answer(self, said: Any) -> bytes:
        """Return an answer like ours, for the empty servicer."""
        raw = said.astype(TYPES["FP64"]).tobytes()
        response = self.messages.ModelInferResponse(model_name="m", model_version="1", raw_output_contents=[raw])
        response.outputs.add(name="p", datatype="FP64", shape=[1, len(said)])
        return bytes(response.SerializeToString())


@dataclass(frozen=True, slots=True)
class GrpcResult:
    """The rounds of ours and the empty servicer, and what each product gave."""

    rounds: Sequence[Mapping[str, dict[str, Any]]]
    products: Mapping[str, dict[str, Any]]

    @property
    def metrics(self) -> dict[str, Any]:
        """The metrics of gRPC; null without a product."""
        ours = self._middle(OURS)["requests_per_s"]
        best = max((found["requests_per_s"] or 0.0 for found in self.products.values()), default=0.0) or None
        ratios = [found["ratio"] for found in self.products.values() if "ratio" in found]
        return {
            "grpc_requests_per_s": ours,
            "best_grpc_product_requests_per_s": best,
            "grpc_product_ratio": min(ratios, default=None),
            "empty_grpc_requests_per_s": self._middle(EMPTY)["requests_per_s"],
        }

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One row per server: medians of rounds, or what a product gave."""
        found = {OURS.name: self._middle(OURS), EMPTY.name: self._middle(EMPTY), **self.products}
        return [{"server": name, **{key: row.get(key) for key in (*COLUMNS, "ratio")}} for name, row in found.items()]

    def _middle(self, peer: Peer) -> dict[str, Any]:
        return {key: statistics.median(one[peer.name][key] for one in self.rounds) for key in COLUMNS}


COLUMNS = ("requests_per_s", "p50_ms", "p99_ms", "driver_busy")


def measure_grpc(bench: GrpcBench, products: Sequence[Peer], count: int, round_s: float) -> GrpcResult:
    """Drive ours by turns with the empty servicer, then with each product.

    Args:
        bench: What they are driven with.
        products: The products to measure.
        count: Rounds of each pair.
        round_s: Seconds of each in a round.
    """
    rounds = bench.rounds(count, round_s)
    return GrpcResult(rounds, {peer.name: bench.product(peer, count, round_s) for peer in products})


def build_bench(
    folder: Path, driver: GrpcGenerator, core: int, environment: Mapping[str, str], warm: float
) -> GrpcBench:
    """Build the bench with the messages of the protocol."""
    return GrpcBench(folder, driver, core, environment, warm, build_messages())
