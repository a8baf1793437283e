"""Sources of images: folders, archives of data sets, Hugging Face datasets."""

from monoloss.data.images.open import open_images
from monoloss.data.images.source import ImageSource

__all__ = ["ImageSource", "open_images"]
