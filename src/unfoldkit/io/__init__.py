"""Input and output: tables, YAML 1.2, event streams of language models, and a transport for HTTP."""
