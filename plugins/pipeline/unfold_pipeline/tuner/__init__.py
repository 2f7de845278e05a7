"""Replica counts at run time: the Tuner of InferLine (SoCC 2020), a table rule, and autoscalers for comparison."""
