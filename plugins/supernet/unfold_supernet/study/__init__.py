"""What a cached subgraph saves on an accelerator: buffer sweeps, caching strategies and the published claims."""
