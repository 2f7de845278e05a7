"""Engine processes over real sockets: started, drained with their streams, replaced when killed, ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from unfold_pipeline.engine.autoscaling.autoscalers import Observation
from unfold_pipeline.engine.autoscaling.token_envelope import (
    MAX_ARRIVALS,
    TokenLog,
    build_envelope_rule,
    build_token_envelope,
)
from unfold_pipeline.engine.endpoint.balancer import EngineBalancer
from unfold_pipeline.engine.endpoint.client import EndpointLimits
from unfold_pipeline.engine.simulation.cluster import EngineLoad
from unfold_pipeline.engine.simulation.workload import build_requests
from unfold_pipeline.runtime.engines.engine_pool import EnginePool, count_engines_over_time
from unfold_pipeline.runtime.engines.llama_server import LlamaCommand, locate_weights, parse_arguments
from unfold_pipeline.serving.engine_router import EngineRouterApp, Estimate, build_router_metrics
from unfoldkit.api import UnfoldError

ENGINE = """
import json, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_): pass
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        for _ in range(body["max_tokens"]):
            self.wfile.write(b'data: {"choices": [{"text": "a"}]}\\n\\n')
            self.wfile.flush()
            time.sleep(0.02)
        self.wfile.write(b'data: {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 9}}\\n\\n')
        self.wfile.write(b"data: [DONE]\\n\\n")
print("a line before the address", flush=True)
time.sleep(float(sys.argv[1]))
server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
server.daemon_threads = True
threading.Thread(target=server.serve_forever, daemon=True).start()
print(f"http://127.0.0.1:{server.server_port}", flush=True)
sys.stdin.read()
"""


def build_pool(slots: int, *arguments: str, timeout_s: float = 20.0) -> EnginePool:
    balancer = EngineBalancer(tuple(map(str, range(slots))), "round_robin")
    return EnginePool(
        (sys.executable, *(arguments or ("-c", ENGINE, "0"))), balancer, timeout_s, "stages.a.engine.local"
    )


@contextlib.asynccontextmanager
async def serve_pool(pool: EnginePool, count: int, log: TokenLog | None = None) -> AsyncIterator[httpx.AsyncClient]:
    """Start engines behind a router and yield a client of it; tests scale the pool themselves."""
    estimate = Estimate(quantiles={})
    app = EngineRouterApp(
        pool.endpoints, pool.balancer, build_router_metrics(pool.balancer, estimate), estimate, EndpointLimits(), 64
    )
    app.log, app.list_states = log, pool.list_states
    await pool.start(count)
    loop = asyncio.create_task(pool.run(pool.fleet.count_ordered, 60.0))
    limits = httpx.AsyncClient(trust_env=False)
    async with (
        limits as app.client,
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client,
    ):
        try:
            yield client
        finally:
            loop.cancel()
            await pool.stop()


async def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


def post(client: httpx.AsyncClient, tokens: int) -> Coroutine[Any, Any, httpx.Response]:
    body = {"prompt": "one two", "max_tokens": tokens, "stream": True}
    return client.post("/v1/completions", json=body, timeout=20)


def list_processes(pool: EnginePool) -> list[int]:
    return [item.process.pid for item in pool.processes if item is not None]


def has_ended(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text("utf-8").split()[2] == "Z"
    return True


def test_engines_drain_their_streams_before_they_end() -> None:
    """An engine that is no longer wanted finishes its stream, takes no other request, and then its process ends."""

    async def check() -> None:
        pool = build_pool(2)
        async with serve_pool(pool, 2) as client:
            pids = list_processes(pool)
            assert pool.start_s > 0
            streams = [asyncio.create_task(post(client, 60)) for _ in range(2)]
            await wait_for(lambda: sum(pool.balancer.requests) == 2)
            pool.scale(1)
            assert sorted(pool.list_states()) == ["active", "draining"]
            short = await asyncio.gather(*(post(client, 2) for _ in range(3)))
            assert all("[DONE]" in reply.text for reply in (*short, *(await asyncio.gather(*streams))))
            await wait_for(lambda: sorted(pool.list_states()) == ["active", "off"])
            await wait_for(lambda: sum(map(has_ended, pids)) == 1)
            status = (await client.get("/status")).json()
            assert sum(engine["is_up"] for engine in status["engines"]) == 1
            pool.scale(2)
            await wait_for(lambda: pool.list_states() == ["active", "active"])
            last = list_processes(pool)
        assert all(map(has_ended, last))
        counts = [count for _, count in pool.changes]
        assert counts == [2, 1, 2]
        assert count_engines_over_time(pool.changes, pool.changes[0][0])(0.0) == 2

    asyncio.run(check())


def test_a_killed_process_is_replaced_while_others_answer() -> None:
    """Requests without a first byte go to another engine; the slot gets a new process."""

    async def check() -> None:
        pool = build_pool(2)
        async with serve_pool(pool, 2) as client:
            before = list_processes(pool)
            os.kill(before[0], signal.SIGKILL)
            replies = [await post(client, 1) for _ in range(6)]
            assert all("[DONE]" in reply.text for reply in replies)
            await wait_for(lambda: pool.list_states() == ["active", "active"])
            after = list_processes(pool)
            assert pool.replaced == 1
            assert after[1] == before[1]
            assert after[0] != before[0]

    asyncio.run(check())


def test_an_engine_that_is_canceled_while_it_starts_takes_no_request() -> None:
    """Scaling down cancels what starts; the process that was launched ends."""

    async def check() -> None:
        pool = build_pool(2, "-c", ENGINE, "0.5")
        async with serve_pool(pool, 1) as client:
            pool.scale(2)
            await wait_for(lambda: np.isnan(pool.fleet.ready_s[1]))
            pool.scale(1)
            assert (await post(client, 1)).status_code == 200
            await wait_for(lambda: not pool.tasks)
            assert pool.list_states() == ["active", "off"]
            assert len(list_processes(pool)) == 1

    asyncio.run(check())


@pytest.mark.parametrize(
    ("program", "timeout_s", "message"),
    [
        ("import sys; sys.exit('no such model')", 20.0, "ended with exit code 1 | no such model"),
        ("import os; os.kill(os.getpid(), 9)", 20.0, "ended by SIGKILL"),
        ("print('x' * 100_000, flush=True); input()", 0.5, "did not serve within 0.5 s"),
    ],
)
def test_an_engine_that_does_not_start_is_named(program: str, timeout_s: float, message: str) -> None:
    """The error holds how the process ended and what it printed last; no process is left."""

    async def check() -> None:
        pool = build_pool(2, "-c", program, timeout_s=timeout_s)
        with pytest.raises(UnfoldError) as error:
            await pool.start(2)
        assert message in str(error.value)
        assert not list_processes(pool)

    asyncio.run(check())


def test_the_log_counts_what_arrived_and_corrects_its_estimates() -> None:
    """The envelope rule sees the tokens of the last seconds, as far as engines counted them."""

    async def check() -> TokenLog:
        log = TokenLog(60.0)
        pool = build_pool(1)
        async with serve_pool(pool, 1, log) as client:
            await post(client, 3)
        return log

    log = asyncio.run(check())
    assert [(item.prompt, item.output) for item in log.arrivals] == [(7, 9)]
    late = TokenLog(10.0)
    for moment_s in (0.0, 1.0, 12.0):
        late.add(moment_s, 100, 10)
    none = np.zeros(1, dtype=np.int64)
    load = EngineLoad(running=none, waiting=none, blocks=none, unfinished=none)
    now = Observation(now_s=12.0, arrived=late.total, load=load, replicas=1)
    assert len(late.arrivals) == 1
    assert late.count(now, 5.0) == (100.0, 110.0)
    planned = build_requests(np.arange(3.0), np.full(3, 100), np.full(3, 10))
    envelope = build_token_envelope(planned, 4, 2.0)
    assert build_envelope_rule(envelope, late.count, hold_s=5.0, margin=1.0)(now) == 4
    assert late.arrivals.maxlen == MAX_ARRIVALS


def test_weights_are_checked_before_a_process_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is none of weights, a missing one, and a missing package are errors that name the key."""
    (tmp_path / "text.gguf").write_text("hello", "utf-8")
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(UnfoldError, match="xllamacpp"):
        locate_weights(None, "stages.a.engine.local")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if name == "xllamacpp" else None)
    for path, message in (
        (tmp_path / "text.gguf", "not a GGUF file"),
        (tmp_path / "gone.gguf", "No such file"),
        (None, "no weights"),
    ):
        with pytest.raises(UnfoldError, match=message):
            locate_weights(path, "stages.a.engine.local")
    command = LlamaCommand(weights=tmp_path / "m.gguf", threads=2, context=512, slots=3, budget=64)
    assert parse_arguments(command.build_arguments()[3:]) == command
