"""Which subnet serves which batch: SuperServe's SlackFit and the policies compared with it."""
