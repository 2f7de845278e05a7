"""The conformance kit: properties of every kind, as functions that plugin authors run in their tests."""

from unfoldkit.testing.conformance import Law, find_violation, laws

__all__ = ["Law", "find_violation", "laws"]
