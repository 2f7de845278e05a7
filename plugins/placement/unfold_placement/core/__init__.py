"""Tasks, nodes, ephemeral resources and the matcher (ESCHER)."""
