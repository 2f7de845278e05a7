"""The model behind LitServe; BATCH is the largest batch."""

# LitServe reads the annotations, so they must not be text
import os
import sys
from typing import Any

import joblib
import litserve
import numpy as np


class Api(litserve.LitAPI):  # type: ignore[misc]
    """One row in, its probabilities out."""

    def setup(self, device: str) -> None:
        """Read the model."""
        del device
        self.model: Any = joblib.load(os.environ["PEER_MODEL"])

    def decode_request(self, request: dict[str, Any]) -> Any:
        """Return the row."""
        return np.array(request["features"], dtype=np.float32)

    def batch(self, inputs: list[Any]) -> Any:
        """Return the rows of a batch."""
        return np.stack(inputs)

    def predict(self, x: Any) -> Any:
        """Return the probabilities of a row or a batch."""
        return self.model.predict_proba(x if x.ndim == 2 else x[None])

    def unbatch(self, output: Any) -> list[Any]:
        """Return the answers of a batch."""
        return list(output)

    def encode_response(self, output: Any) -> dict[str, Any]:
        """Return the answer."""
        return {"p": np.atleast_2d(output)[0].tolist()}


if __name__ == "__main__":
    batch = int(os.environ["BATCH"])
    api = Api(max_batch_size=batch, batch_timeout=0.005) if batch > 1 else Api()
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(port=int(sys.argv[1]), host="127.0.0.1", generate_client_file=False, log_level="error")
