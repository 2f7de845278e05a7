"""The cheapest configuration that meets the SLO, with its proof."""
