"""Tables, splits and error costs of a cascade."""
