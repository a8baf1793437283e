"""Sparse autoencoders: configurations, activations, the model, and what it is trained for."""
