"""The running pipeline behind HTTP: inference, metrics, the live page, and the loop that scales replicas."""
