"""Search from candidates of single stages to a certified cascade."""
