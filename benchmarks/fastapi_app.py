"""The usual way to serve a scikit-learn model: FastAPI, a pydantic body, a joblib file. A peer, not a benchmark."""

from __future__ import annotations

import os
from typing import Any

import joblib
from fastapi import FastAPI
from pydantic import BaseModel


class Case(BaseModel):
    """One row."""

    features: list[float]


def create() -> FastAPI:
    """Return the application for the model in the file PEER_MODEL."""
    app, model = FastAPI(), joblib.load(os.environ["PEER_MODEL"])

    @app.post("/predict")
    def predict(case: Case) -> dict[str, Any]:
        return {"label": str(model.predict([case.features])[0])}

    @app.post("/predict-async")
    async def predict_async(case: Case) -> dict[str, Any]:
        return {"label": str(model.predict([case.features])[0])}

    return app
