"""From candidate policies to a certified policy over time."""
