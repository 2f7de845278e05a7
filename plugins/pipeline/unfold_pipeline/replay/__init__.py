"""A trace against a plan, simulated or against running replicas."""
