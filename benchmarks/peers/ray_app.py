"""The model behind Ray Serve, batched by it."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import joblib
import numpy as np
import ray
from ray import serve


@serve.deployment(num_replicas=1, max_ongoing_requests=64)
class Model:
    """One row in, its probabilities out."""

    def __init__(self) -> None:
        self.model: Any = joblib.load(os.environ["PEER_MODEL"])

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.0)  # type: ignore[untyped-decorator]
    async def many(self, rows: list[list[float]]) -> list[list[float]]:
        """Answer a batch."""
        found: list[list[float]] = self.model.predict_proba(np.array(rows, dtype=np.float32)).tolist()
        return found

    async def __call__(self, request: Any) -> dict[str, Any]:
        """Answer one request."""
        if request.method == "GET":
            return {"ready": True}
        return {"p": await self.many((await request.json())["features"])}


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(Model.bind())
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()
