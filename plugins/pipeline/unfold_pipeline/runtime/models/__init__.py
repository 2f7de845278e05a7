"""The models of a running pipeline: loaded, described, and connected by the tensors that they read and return."""
