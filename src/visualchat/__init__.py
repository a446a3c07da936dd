"""VisualChat: chat models that talk about many images over many rounds."""
