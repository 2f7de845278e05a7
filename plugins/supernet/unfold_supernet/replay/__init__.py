"""A trace against a family: simulated, measured or on the accelerator."""
