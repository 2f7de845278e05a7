"""Readers for files that others may have written: nothing in them runs, blocks, or fills the memory without bound."""
