"""CSV and YAML primitives."""
