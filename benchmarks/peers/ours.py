"""The model behind the project's own server: `python -m benchmarks.peers.ours PORT`."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from unfoldkit.serving.batching.batcher import Limits
from unfoldkit.serving.http.host import Address, host, listen
from unfoldkit.serving.model import Answers, Batch, Field
from unfoldkit.serving.oip.app import application, served


@dataclass(frozen=True, slots=True)
class Onnx:
    """A file of ONNX Runtime with one input of ``width`` numbers, on one thread."""

    session: Any
    inputs: tuple[Field, ...]
    outputs: tuple[Field, ...]
    name: str = "m"
    version: str = "1"
    facts: Mapping[str, Any] = field(default_factory=dict)

    def predict(self, batch: Batch) -> Answers:
        """Return the last output of the session."""
        given = self.session.get_inputs()[0].name
        (p,) = self.session.run(
            [self.session.get_outputs()[-1].name], {given: batch.inputs["x"].astype(np.float32, copy=False)}
        )
        return Answers({"p": p.astype(np.float64)})


def onnx(file: str, width: int, classes: int) -> Onnx:
    """Return the model in a file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, ["CPUExecutionProvider"])
    return Onnx(session, (Field("x", "FP64", (width,)),), (Field("p", "FP64", (classes,)),))


def main(port: int) -> None:
    """Serve PEER_ONNX; WIDTH, CLASSES and, if given, QUEUE (rows) say how."""
    model = onnx(os.environ["PEER_ONNX"], int(os.environ["WIDTH"]), int(os.environ["CLASSES"]))
    limits = Limits(queue_rows=int(os.environ.get("QUEUE", "1024")))
    app = application([model], limits=limits)
    bound = listen(Address(port=port))
    host(served("m", app), bound)


if __name__ == "__main__":
    main(int(sys.argv[1]))
