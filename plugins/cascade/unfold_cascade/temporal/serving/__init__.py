"""Stateful serving: the stage of each entity is kept between requests."""
