"""What a user may write in a supernet spec."""
