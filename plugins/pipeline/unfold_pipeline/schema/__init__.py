"""What a user may write in a spec of kind ``pipeline`` (pydantic models and their validation)."""
