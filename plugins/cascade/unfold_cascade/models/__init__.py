"""The fitted models of a run: training, storage, tuned parameters and ONNX Runtime."""
