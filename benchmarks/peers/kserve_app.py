"""The model behind KServe's server."""

from __future__ import annotations

import os
from typing import Any

import joblib
import kserve
import numpy as np
from kserve import InferOutput, InferRequest, InferResponse


class Model(kserve.Model):  # type: ignore[misc]
    """An XGBoost classifier that answers probabilities."""

    def load(self) -> bool:
        """Read the model."""
        self.model: Any = joblib.load(os.environ["PEER_MODEL"])
        self.ready = True
        return True

    def predict(self, payload: InferRequest, headers: Any = None, response_headers: Any = None) -> InferResponse:
        """Answer one request."""
        del headers, response_headers
        x = np.asarray(payload.inputs[0].as_numpy(), dtype=np.float32)
        found = self.model.predict_proba(x)
        output = InferOutput("p", list(found.shape), "FP32")
        output.set_data_from_numpy(found, binary_data=bool(payload.use_binary_outputs))
        # its answers over HTTP must have an id, its requests need not
        return InferResponse(payload.id or "0", self.name, [output])


if __name__ == "__main__":
    model = Model("m")
    model.load()
    kserve.ModelServer().start([model])
