"""Plans as reports, files and other systems' formats."""
