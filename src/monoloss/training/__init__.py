"""Training of sparse autoencoders on a feature store."""
