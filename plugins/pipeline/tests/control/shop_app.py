"""A Ray Serve application of another author, on a cluster of its own; prints where cluster and application listen.

Its deployments have no tuner. Replicas are cheap, so that many fit on one machine.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from typing import Any

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle


@serve.deployment(num_replicas=1, max_ongoing_requests=4, ray_actor_options={"num_cpus": 0})
class Face:
    async def __call__(self, number: float) -> float:
        """Return a result after a while."""
        await asyncio.sleep(0.05)
        return number + 1


@serve.deployment(num_replicas=1, max_ongoing_requests=4, ray_actor_options={"num_cpus": 0})
class Detect:
    def __init__(self, face: DeploymentHandle) -> None:
        self.face = face

    async def __call__(self, _request: Any) -> dict[str, float]:
        """Pass every request on."""
        await asyncio.sleep(0.05)
        return {"score": await self.face.remote(1.0)}


def find_port() -> int:
    """Return a free port of loopback."""
    with socket.socket() as item:
        item.bind(("127.0.0.1", 0))
        return int(item.getsockname()[1])


def main() -> None:
    """Serve until stdin ends."""
    context = ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        dashboard_port=find_port(),
        log_to_driver=False,
        logging_level="error",
        _system_config={"metrics_report_interval_ms": 2000},
    )
    port = find_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(
        Detect.bind(Face.bind()),
        name="shop",
        route_prefix="/",
        external_scaler_enabled="scaled" in sys.argv,
    )
    place = {"address": context["gcs_address"], "url": f"http://127.0.0.1:{port}/"}
    sys.stdout.write(f"{json.dumps(place)}\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main()
