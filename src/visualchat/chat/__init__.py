"""Conversations with a model."""

from visualchat.chat.session import ChatSession

__all__ = ["ChatSession"]
