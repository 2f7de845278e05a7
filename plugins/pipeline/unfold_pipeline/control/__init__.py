"""The scaling rule in charge of an existing deployment: its demand, its replica counts, and the loop between them."""
