"""Plans and replays as reports, files, and the formats of other serving systems."""
