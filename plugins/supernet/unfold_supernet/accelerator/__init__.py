"""The FastSwitch model (SUSHI): hardware, layers, cost, subgraph cache and query scheduler."""
