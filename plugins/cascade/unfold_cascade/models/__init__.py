"""The fitted models of a run: zoo, tuned parameters, ONNX Runtime."""
