"""Hostile pictures, paths and addresses."""

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hostile_cases import BLUE, GREEN, RED, Case, answer, blocks, encoded, image, picture, talk, user
from PIL import Image

from visualchat.data.sources import Source
from visualchat.dialogue import Dialogue


def shows(*colours: tuple[int, int, int], upright: bool = False) -> Callable[[Dialogue, Any, list[Image.Image]], None]:
    """The decoded picture shows these colours from left to right, or from top to bottom; JPEG may err by 4."""

    def verify(dialogue: Dialogue, processor: Any, pictures: list[Image.Image]) -> None:
        (found,) = pictures
        assert found.mode == "RGB"
        size = len(colours)
        for n, colour in enumerate(colours):
            x, y = (found.width * (2 * n + 1) // (2 * size), found.height // 2)
            place = (found.width // 2, found.height * (2 * n + 1) // (2 * size)) if upright else (x, y)
            assert np.abs(np.subtract(found.getpixel(place), colour)).max() <= 4

    return verify


def png_that_claims(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(4)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def turned_photo(exif: bytes | None = None) -> bytes:
    notes = Image.Exif()
    notes[0x0112] = 6
    return encoded(blocks(RED, BLUE), "JPEG", quality=95, subsampling=0, exif=notes.tobytes() if exif is None else exif)


def damaged_png() -> bytes:
    data = bytearray(encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))))
    data[len(data) // 2] ^= 255
    return bytes(data)


def palette() -> bytes:
    found = Image.fromarray(np.array([[0, 1]], np.uint8).repeat(16, 0).repeat(16, 1), "L").convert("P")
    found.putpalette([*RED, *GREEN])
    return encoded(found, transparency=bytes([0, 255]))


def frames() -> bytes:
    first, second = blocks(RED), blocks(BLUE)
    return encoded(first, "GIF", save_all=True, append_images=[second])


def noise(size: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8))


PICTURES = (
    Case(
        "JPEG cut short",
        "says that it is truncated",
        "bad row",
        picture("a.jpg", encoded(noise(), "JPEG")[:-900]),
        "image file is truncated",
    ),
    Case(
        "JPEG of a header alone",
        "says that it is truncated",
        "bad row",
        picture("a.jpg", encoded(noise(), "JPEG")[:650]),
        "cannot be read as an image",
    ),
    Case(
        "PNG with a flipped byte",
        "says that it is broken",
        "bad row",
        picture("a.png", damaged_png()),
        "cannot be read as an image",
    ),
    Case("file of zero bytes", "is not an image", "bad row", picture("a.png", b""), "cannot identify image file"),
    Case("text called .png", "is not an image", "bad row", picture("a.png", b"hello"), "cannot identify image file"),
    Case(
        "SVG",
        "is not one of the formats that are read",
        "bad row",
        picture("a.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
        "cannot identify image file, expected one of",
    ),
    Case(
        "EPS, which PIL would pass to another program",
        "is not one of the formats that are read",
        "bad row",
        picture("a.eps", encoded(blocks(RED), "EPS")),
        "cannot identify image file",
    ),
    Case(
        "TIFF of floating-point numbers",
        "nothing says which value is white",
        "bad row",
        picture("a.tiff", encoded(Image.new("F", (4, 4), 0.5), "TIFF")),
        "holds floating-point values",
    ),
    Case(
        "decompression bomb: 60,000 × 60,000 pixels in 60 bytes",
        "refused by its header, nothing is decoded",
        "bad row",
        picture("a.png", png_that_claims(60_000, 60_000)),
        "decompression bomb",
    ),
    Case(
        "9,000 × 8,000 pixels",
        "over the limit of 64 million, nothing is decoded",
        "bad row",
        picture("a.png", png_that_claims(9000, 8000)),
        "9000 x 8000 pixels, at most 64000000 are allowed",
    ),
    Case(
        "a strip of 1 × 5,000 pixels",
        "scaled to its short side it would become huge",
        "bad row",
        picture("a.png", encoded(Image.new("RGB", (1, 5000)))),
        "a side may be at most 200 times the other",
    ),
    Case(
        "PNG called .jpg",
        "known by its content",
        "trains",
        picture("a.jpg", encoded(blocks(RED, GREEN))),
        verify=shows(RED, GREEN),
    ),
    Case(
        "image without a file ending",
        "known by its content",
        "trains",
        picture("a", encoded(blocks(RED))),
        verify=shows(RED),
    ),
    Case(
        "1 × 1 pixel",
        "is an image",
        "trains",
        picture("a.png", encoded(Image.new("RGB", (1, 1), RED))),
        verify=shows(RED),
    ),
    Case(
        "photo on its side, as its EXIF says",
        "turned upright",
        "trains",
        picture("a.jpg", turned_photo()),
        verify=shows(RED, BLUE, upright=True),
    ),
    Case(
        "photo with damaged EXIF",
        "taken as it is stored",
        "trains",
        picture("a.jpg", turned_photo(b"Exif\0\0II*\0\xff\xff\xff\xff")),
        verify=shows(RED, BLUE),
    ),
    Case(
        "16-bit grey",
        "scaled, not clipped to white",
        "trains",
        picture("a.png", encoded(Image.fromarray(np.full((8, 8), 100 * 257, np.uint16)))),
        verify=shows((100, 100, 100)),
    ),
    Case(
        "CMYK photo",
        "converted",
        "trains",
        picture("a.jpg", encoded(blocks(RED, BLUE).convert("CMYK"), "JPEG", quality=95, subsampling=0)),
        verify=shows(RED, BLUE),
    ),
    Case(
        "one-bit image",
        "black and white",
        "trains",
        picture("a.png", encoded(Image.new("1", (4, 4), 1))),
        verify=shows((255, 255, 255)),
    ),
    Case(
        "palette with a transparent colour",
        "transparency lies on white",
        "trains",
        picture("a.png", palette()),
        verify=shows((255, 255, 255), GREEN),
    ),
    Case(
        "transparent pixels that hide a colour",
        "transparency lies on white",
        "trains",
        picture("a.png", encoded(Image.new("RGBA", (4, 4), (*RED, 0)))),
        verify=shows((255, 255, 255)),
    ),
    Case("animated GIF", "the first frame", "trains", picture("a.gif", frames()), verify=shows(RED)),
)


def link_out(path: Path) -> None:
    outside = path.parent.parent / f"{path.parent.name}-outside.png"
    outside.write_bytes(encoded(blocks(RED)))
    path.symlink_to(outside)


def asks(name: str) -> Callable[[Path], Source]:
    return talk(user(image(name), "What is it?"), answer())


def url(address: str) -> Callable[[Path], Source]:
    return talk(user({"type": "image", "url": address}, "What is it?"), answer())


PATHS = (
    Case("missing file", "named", "bad row", asks("gone.png"), r"missing image file: 'gone\.png'"),
    Case("folder in place of a file", "no such file", "bad row", picture("a.png", Path.mkdir), "missing image file"),
    Case(
        "named pipe, which would never end",
        "no such file",
        "bad row",
        picture("a.png", os.mkfifo),
        "missing image file",
    ),
    Case("path with `..`", "leads out of the data root", "bad row", asks("../red.png"), "path outside the data root"),
    Case("absolute path", "leads out of the data root", "bad row", asks("/etc/passwd"), "path outside the data root"),
    Case(
        "Windows path with a drive",
        "leads out of the data root",
        "bad row",
        asks("C:\\pictures\\a.png"),
        "path outside the data root",
    ),
    Case("link that leads out", "refused", "bad row", picture("a.png", link_out), "link that leads out"),
    Case("empty file name", "refused", "bad row", asks(""), "is not a file name"),
    Case("file name with a zero byte", "refused", "bad row", asks("a\0.png"), "is not a file name"),
    Case("web address", "nothing is fetched", "bad row", url("http://localhost/a.png"), "nothing is fetched"),
    Case("`file://` address", "nothing is fetched", "bad row", url("file:///etc/passwd"), "nothing is fetched"),
    Case("data URL of broken base64", "named", "bad row", url("data:image/png;base64,@@"), "not valid base64"),
)
