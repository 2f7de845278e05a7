"""Keep machine learning inside a budget of money, latency and accuracy."""

__version__ = "0.1.0"
