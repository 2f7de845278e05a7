"""Instance types, what they cost and how they are billed: bundled with a date, refreshed through boto3."""
