"""What a user may write in a pipeline spec."""
