"""Sources of step times: operator tables, recorded benchmarks, and a roofline."""
