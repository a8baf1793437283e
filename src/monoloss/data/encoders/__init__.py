"""Image models that turn images into embeddings."""

from monoloss.data.encoders.encoders import PRESETS, ImageEncoder, load_encoder

__all__ = ["PRESETS", "ImageEncoder", "load_encoder"]
