"""The model behind the project's own server: `python -m benchmarks.peers.ours PORT`."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from unfoldkit.serving.batching.batcher import Limits
from unfoldkit.serving.http.address import Address, open_listener
from unfoldkit.serving.http.server import HostOptions, run_service
from unfoldkit.serving.model import Batch, Field, Predictions
from unfoldkit.serving.oip.app import build_application, build_service


@dataclass(frozen=True, slots=True)
class Onnx:
    """A file of ONNX Runtime with one input of ``width`` numbers, on one thread."""

    session: Any
    inputs: tuple[Field, ...]
    outputs: tuple[Field, ...]
    name: str = "m"
    version: str = "1"
    facts: Mapping[str, Any] = field(default_factory=dict)

    def predict(self, batch: Batch) -> Predictions:
        """Return the last output of the session."""
        given = self.session.get_inputs()[0].name
        (p,) = self.session.run(
            [self.session.get_outputs()[-1].name], {given: batch.inputs["x"].astype(np.float32, copy=False)}
        )
        return Predictions({"p": p.astype(np.float64)})


def onnx(file: str, width: int, classes: int) -> Onnx:
    """Return the model in a file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, ["CPUExecutionProvider"])
    return Onnx(session, (Field("x", "FP64", (width,)),), (Field("p", "FP64", (classes,)),))


def main(port: int) -> None:
    """Serve the model of PEER_ONNX, with WIDTH inputs and CLASSES outputs; optional: QUEUE, FAST_PATH=0, GRPC_PORT."""
    model = onnx(os.environ["PEER_ONNX"], int(os.environ["WIDTH"]), int(os.environ["CLASSES"]))
    limits = Limits(queue_rows=int(os.environ.get("QUEUE", "1024")))
    app = build_application([model], limits=limits)
    bound = open_listener(Address(port=port))
    grpc_port = os.environ.get("GRPC_PORT", "")
    options = HostOptions(
        fast_path=os.environ.get("FAST_PATH", "1") == "1", grpc_address=grpc_port and f"127.0.0.1:{grpc_port}"
    )
    run_service(build_service("m", app), bound, options)


if __name__ == "__main__":
    main(int(sys.argv[1]))
