"""The sampled execution model and billing (RubberBand, section 4)."""
