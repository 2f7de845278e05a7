"""The sampled execution model and billing (RubberBand, EuroSys 2021)."""
