"""Importers: write the arrays of .npy, .npz, .pt and LMDB files and of Hugging Face datasets as a feature store."""
