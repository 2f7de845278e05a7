"""What goes wrong in production, done to real servers over real sockets."""
