"""What a user may write in a tuning spec."""
