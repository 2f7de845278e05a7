"""The spec resolved once: DAG, hardware options, prices, quotas and traffic."""
