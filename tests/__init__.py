"""Tests of the house. A package, because some library installs one of this name beside its own."""
