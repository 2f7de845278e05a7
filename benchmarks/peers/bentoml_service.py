"""The model behind BentoML, batched by it."""

from __future__ import annotations

import os
from typing import Any

import bentoml
import joblib
import numpy as np


@bentoml.service(workers=1, traffic={"timeout": 30}, logging={"access": {"enabled": False}})
class Service:
    """One row in, its probabilities out."""

    def __init__(self) -> None:
        self.model: Any = joblib.load(os.environ["PEER_MODEL"])

    @bentoml.api(batchable=True, max_batch_size=32, max_latency_ms=1000)
    def predict(self, features: list[list[float]]) -> list[list[float]]:
        """Answer a batch."""
        found: list[list[float]] = self.model.predict_proba(np.array(features, dtype=np.float32)).tolist()
        return found

    @bentoml.api
    def single(self, features: list[float]) -> list[float]:
        """Answer one row."""
        found: list[float] = self.model.predict_proba(np.array([features], dtype=np.float32))[0].tolist()
        return found
