"""Models of the stages, fitted on cases, and the study that holds them."""
