"""The model as a runtime of MLServer."""

from __future__ import annotations

import os
from typing import Any

import joblib
import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Model(MLModel):  # type: ignore[misc]
    """An XGBoost classifier that answers probabilities."""

    async def load(self) -> bool:
        """Read the model."""
        self.model: Any = joblib.load(os.environ["PEER_MODEL"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer one request, or a batch that MLServer made."""
        x = self.decode(payload.inputs[0], default_codec=NumpyCodec)
        found = self.model.predict_proba(np.asarray(x, dtype=np.float32))
        output = NumpyCodec.encode_output("p", found)
        return InferenceResponse(model_name=self.name, outputs=[output])
