"""Policies that decide which tenant comes next."""
