"""Arrays in files of others into a feature store."""
