"""Instance types, their prices and billing rules: a bundled table with its date, refreshed through boto3."""
