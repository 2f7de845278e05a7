"""The FastSwitch model: hardware, layers, cost, subgraph cache and scheduler."""
