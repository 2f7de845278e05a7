"""What a user may write in a cascade spec."""
