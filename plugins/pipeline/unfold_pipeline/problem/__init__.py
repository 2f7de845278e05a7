"""The spec resolved once: DAG, hardware options, prices, quotas, traffic and models."""
