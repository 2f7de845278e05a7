"""What of a user's module is elastic: its width, its heads of attention and its depth."""
