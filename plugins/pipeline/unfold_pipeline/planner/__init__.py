"""The cheapest configuration that meets the SLO, its proof and diagnostics (the Planner of InferLine, SoCC 2020)."""
