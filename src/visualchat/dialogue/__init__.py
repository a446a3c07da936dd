"""A conversation and its tokens: what a dialogue is, how it is written as a prompt, how that becomes token ids."""

from visualchat.dialogue.types import Caption, Content, Dialogue, Expected, Turn

__all__ = ["Caption", "Content", "Dialogue", "Expected", "Turn"]
