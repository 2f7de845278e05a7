"""Live clusters: the contract of a backend, the loop that runs policies against one, and the backends."""
