"""Data, checkpoints and hand-over files of a family."""
