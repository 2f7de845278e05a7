"""The declared dependencies work together: at the newest versions, and (in the session `minimums`) at the lowest."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

IMPORTS = (
    "aiohttp", "boto3", "httptools", "httpx", "matplotlib.pyplot", "msgspec", "numba", "onnx", "onnxmltools",
    "onnxruntime", "pluggy", "prometheus_client", "pydantic", "rich", "sklearn", "scipy", "skl2onnx", "skops.io",
    "starlette", "typer", "uvicorn", "uvloop", "xgboost", "yaml",
)  # fmt: skip


@pytest.mark.e2e
def test_every_dependency_imports_without_a_deprecation() -> None:
    """Importing all of them in one process raises no DeprecationWarning."""
    words = [sys.executable, "-W", "error::DeprecationWarning", "-c", f"import {', '.join(IMPORTS)}"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_boosted_trees_survive_onnx() -> None:
    """A model of xgboost gives the same probabilities through ONNX, to single precision."""
    import onnxruntime
    import xgboost
    from onnxmltools import convert_xgboost
    from onnxmltools.convert.common.data_types import FloatTensorType

    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 5)).astype(np.float32)
    model = xgboost.XGBClassifier(n_estimators=5, max_depth=3, n_jobs=1).fit(x, (x[:, 0] > 0).astype(int))
    stored = convert_xgboost(model, initial_types=[("x", FloatTensorType([None, 5]))])
    session = onnxruntime.InferenceSession(stored.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"x": x})[1], model.predict_proba(x), atol=1e-6)
