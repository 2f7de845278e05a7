"""Data in; checkpoints, records and hand-over files of a supernet out."""
