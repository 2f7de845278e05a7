"""Reports and exports of plans of LLM engines."""
