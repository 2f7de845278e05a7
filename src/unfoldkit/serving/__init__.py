"""The server side: what `serve` returns and how it is hosted."""
