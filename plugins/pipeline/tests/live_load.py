"""Open-loop load on a served pipeline over real sockets, for tests and benchmarks of the live loop."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

SPEC = """
version: 1
kind: pipeline
name: steps
slo: {{p99: 700 ms}}
arrivals: {{process: poisson, rate: 1/s, duration: 60 s}}
hardware: {{core: {{price: $0.05/h, quota: {quota}}}}}
stages:
  {stage}: {{latency: {{core: {{1: {seconds} s}}}}, model: {{code: "served:nap", features: 2}}}}
tuner: {tuner}
"""
CODE = """import time

def nap(rows):
    time.sleep({seconds} * len(rows))
    return rows.sum(axis=1)
"""


@dataclass(frozen=True, slots=True)
class Response:
    """The status of a request, 0 if the connection failed, and the seconds since it was due."""

    status: int
    seconds: float


def write_pipeline(folder: Path, *, stage: str, seconds: float, quota: int, tuner: str) -> str:
    """Write ``steps.yaml``, a pipeline of one stage that sleeps for each row, and its model; return the spec."""
    spec = SPEC.format(stage=stage, seconds=seconds, quota=quota, tuner=tuner)
    (folder / "served.py").write_text(CODE.format(seconds=seconds))
    (folder / "steps.yaml").write_text(spec)
    return spec


async def send_trace(
    address: str, name: str, times_s: Sequence[float], row: Sequence[float], timeout_s: float = 60.0
) -> list[Response]:
    """Send a request of one row at each time, each on its own connection, whatever became of those before."""
    body = json.dumps(
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, len(row)], "data": list(row)}]}
    ).encode()
    head = (
        f"POST /v2/models/{name}/infer HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    url, start_s = urlsplit(address), time.perf_counter() + 0.1

    async def send_request(due_s: float) -> Response:
        await asyncio.sleep(max(0.0, start_s + due_s - time.perf_counter()))
        status = 0
        try:
            async with asyncio.timeout(timeout_s):
                reader, writer = await asyncio.open_connection(url.hostname, url.port)
                writer.write(head.encode() + body)
                status = int((await reader.readline()).split()[1])
                await reader.read()
                writer.close()
        except (OSError, IndexError, ValueError, TimeoutError):
            pass
        return Response(status, time.perf_counter() - start_s - due_s)

    return list(await asyncio.gather(*(send_request(float(due_s)) for due_s in times_s)))


def read_status(address: str) -> dict[str, Any]:
    """Return the status of a served pipeline."""
    with urllib.request.urlopen(f"{address}/status", timeout=200) as response:
        return dict(json.load(response))


def step_trace(rates: Sequence[float], seconds: float) -> list[float]:
    """Return evenly spaced arrivals with a rate that changes every ``seconds``, none near a whole second."""
    times, start_s = list[float](), 0.0
    for rate in rates:
        times += [start_s + (index + 0.5) / rate for index in range(int(rate * seconds))]
        start_s += seconds
    return [moment - times[0] for moment in times]


def count(responses: Sequence[Response], is_counted: Callable[[Response], bool]) -> int:
    """Return how many responses meet a condition."""
    return sum(map(is_counted, responses))
