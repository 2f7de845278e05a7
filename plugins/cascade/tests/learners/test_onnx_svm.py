"""Support vector machines written as matrix products say what scikit-learn's say."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
from sklearn.datasets import make_blobs
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from unfold_cascade.learners import onnx_svm


def fitted(model: Any, classes: int, columns: int = 4) -> tuple[list[Any], Any, Any]:
    """Return the steps of a model fitted on noisy blobs, the model, and rows around them."""
    x, y = make_blobs(160, columns, centers=classes, cluster_std=6.0, random_state=5)
    model.fit(x, y)
    steps = [step for _, step in model.steps] if hasattr(model, "steps") else [model]
    return steps, model, np.vstack([x, 3 * x[::-1] + 1])


@pytest.mark.parametrize("classes", [2, 3, 6])
@pytest.mark.parametrize("kernel", ["rbf", "linear"])
@pytest.mark.parametrize(
    "scale", [None, StandardScaler(), StandardScaler(with_mean=False), StandardScaler(with_std=False)]
)
def test_scores_equal_scikit_learn(classes: int, kernel: str, scale: Any) -> None:
    """In double precision every score agrees to rounding, in single precision nearly; rows far away included."""
    svc = SVC(C=3.0, kernel=kernel, gamma="scale")
    steps, model, x = fitted(svc if scale is None else make_pipeline(scale, svc), classes)
    assert onnx_svm.is_supported(steps)
    expected = np.asarray(model.decision_function(x)).reshape(len(x), -1)
    for form, tolerance in ((np.float64, 1e-9), (np.float32, 2e-3)):
        session = onnxruntime.InferenceSession(onnx_svm.build_graph(steps, x.shape[1], form).SerializeToString())
        (found,) = session.run(None, {"x": x.astype(form)})
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "model",
    [
        SVC(kernel="poly"),
        SVC(kernel="sigmoid"),
        SVC(decision_function_shape="ovo"),
        make_pipeline(StandardScaler(), StandardScaler(), SVC()),
        make_pipeline(SVC()).set_params(svc__kernel="poly"),
    ],
)
def test_unsupported_machines_use_the_converter(model: Any) -> None:
    """What is not written as products is not claimed to be known."""
    assert not onnx_svm.is_supported(fitted(model, 3)[0])
