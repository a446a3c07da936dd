"""What the tiny world's captions say, for tests that check answers against it."""

import re


def read_captions(captions):
    """(image, colour, shape, place) of everything that the captions name."""
    return [
        (number, *re.fullmatch(r"a (\w+) (\w+) ([\w-]+)", part).groups())
        for number, caption in enumerate(captions, start=1)
        for part in caption.split(", ")
    ]
