"""The kind ``tuning``: elastic clusters for hyper-parameter tuning that are on time and cheap (RubberBand)."""
