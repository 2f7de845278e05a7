"""Live clusters: the backend contract, the control loop that runs policies against a backend, and recovery."""
