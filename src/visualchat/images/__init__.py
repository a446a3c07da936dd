"""Images before the model: what may stand for one, decoding, and the store of their vision features."""

from visualchat.images.types import ArchivedImage, ImageArchive, ImageInput

__all__ = ["ArchivedImage", "ImageArchive", "ImageInput"]
