"""Extraction: embed the images of a source with an image model and write them as a feature store."""
