"""Reports and figures of tuning jobs."""
