"""What a user may write in a placement spec."""
