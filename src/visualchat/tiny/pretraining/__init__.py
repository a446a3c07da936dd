"""How the tiny world's backbones were made: tokenizer, vision tower and language models, from nothing."""

from collections.abc import Callable

OnStep = Callable[[int, int, float], None]
"""Called after each step with steps done, steps in all and the loss."""
