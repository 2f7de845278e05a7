"""State of entities, kept between requests."""
