"""What a server is told when it starts; imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field, fields


@dataclass(frozen=True)
class Limits:
    """What one request may take.

    Attributes:
        body_bytes: Of the request's body; 413 beyond.
        upload_seconds: Until the body has come; 408 beyond.
        images: In the conversation; 400 beyond.
        pixels: Of all of them together, decoded; 400 beyond.
        tokens: Of an answer; 400 beyond.
        seconds: From submission to the end of its answer; 504 beyond.

    Raises:
        ValueError: One is not positive.
    """

    body_bytes: int = 32 << 20
    upload_seconds: float = 30.0
    images: int = 16
    pixels: int = 64_000_000
    tokens: int = 1024
    seconds: float = 300.0

    def __post_init__(self) -> None:
        for limit in fields(self):
            if not getattr(self, limit.name) > 0:
                raise ValueError(f"limits.{limit.name}={getattr(self, limit.name)}: expected more than 0")


@dataclass(frozen=True)
class Settings:
    """What a server answers with.

    Attributes:
        name: What clients call the model.
        keys: One of them must come with each request; empty for a server that asks for none.
        reuse_across_keys: Whether what was computed for one key is reused for others.
        max_new_tokens: The most tokens of an answer where the request does not say.
        temperature: Where the request does not say.
        named_image_bytes: The most bytes of images that are remembered by their `uuid`.
        limits: Of each request.

    Raises:
        ValueError: One is out of range.
    """

    name: str = "visualchat"
    keys: tuple[str, ...] = ()
    reuse_across_keys: bool = False
    max_new_tokens: int = 256
    temperature: float = 0.0
    named_image_bytes: int = 1 << 28
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("name is empty: expected what clients call the model")
        if not 1 <= self.max_new_tokens <= self.limits.tokens:
            raise ValueError(
                f"max_new_tokens={self.max_new_tokens}: expected 1 to limits.tokens, which is {self.limits.tokens}"
            )
        if not 0 <= self.temperature <= 2:
            raise ValueError(f"temperature={self.temperature}: expected 0 to 2")
        if self.named_image_bytes < 0:
            raise ValueError(f"named_image_bytes={self.named_image_bytes}: expected 0 or more")
        for number, key in enumerate(self.keys, start=1):
            if len(key) < 8 or not key.isascii() or not key.isprintable() or " " in key:
                raise ValueError(
                    f"key {number} of api_keys has {len(key)} characters: expected 8 or more printable ASCII "
                    "characters without a space; keys are separated by commas"
                )
