"""What several tests share: small data, runs and models, checks, bounds for roundings, scripts of child processes."""
