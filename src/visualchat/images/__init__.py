"""Images before the model: what may stand for one, decoding, and the store of their vision features."""

from visualchat.images.types import ImageInput, ImageStore, StoredImage

__all__ = ["ImageInput", "ImageStore", "StoredImage"]
