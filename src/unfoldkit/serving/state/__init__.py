"""States of entities between requests."""
