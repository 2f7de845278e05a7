"""Inference pipelines that meet their deadline at least cost (InferLine, SoCC 2020)."""
