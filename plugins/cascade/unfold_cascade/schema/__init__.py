"""What a user may write in a cascade spec: pydantic models and the checks between their keys."""
