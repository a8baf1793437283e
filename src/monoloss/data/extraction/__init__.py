"""Images through an encoder into a feature store."""
