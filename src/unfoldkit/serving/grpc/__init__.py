"""The Open Inference Protocol over gRPC, next to the same models over HTTP."""
