"""The kind ``tuning``: elastic clusters for hyperparameter tuning that meet a deadline cheaply (RubberBand)."""
