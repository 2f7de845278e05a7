"""The conformance kit: what every kind must do, as functions that any plugin author runs."""

from unfoldkit.testing.conformance import Law, laws

__all__ = ["Law", "laws"]
