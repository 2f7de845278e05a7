"""FastAPI and joblib, as tutorials have it: a pydantic body, a `def` endpoint, the scikit-learn interface."""

from __future__ import annotations

import os
from typing import Any

import joblib
import numpy as np
from fastapi import FastAPI
from pydantic import BaseModel


class Case(BaseModel):
    """One row."""

    features: list[float]


def create() -> FastAPI:
    """Return the application for the model in the file PEER_MODEL."""
    app, model = FastAPI(), joblib.load(os.environ["PEER_MODEL"])

    @app.get("/ready")
    def ready() -> bool:
        return True

    @app.post("/predict")
    def predict(case: Case) -> dict[str, Any]:
        return {"p": model.predict_proba(np.array([case.features], dtype=np.float32))[0].tolist()}

    @app.post("/predict-async")
    async def predict_async(case: Case) -> dict[str, Any]:
        return {"p": model.predict_proba(np.array([case.features], dtype=np.float32))[0].tolist()}

    return app
