"""Labelled images for fine-tuning: joined with stored embeddings, ordered, transformed, mixed, batched."""
