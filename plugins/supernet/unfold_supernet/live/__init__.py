"""A family behind an endpoint: a deadline for each request, a net for each batch."""
