"""Results of evaluation tools, as a table with a row per request: one module for each tool's format."""
