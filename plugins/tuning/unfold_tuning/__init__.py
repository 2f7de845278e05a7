"""The kind ``tuning``: elastic clusters for hyper-parameter tuning that meet a deadline cheaply (RubberBand)."""
