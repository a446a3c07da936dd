"""Any picture becomes RGB, whatever its form and file type; a broken one is named together with what is wrong."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visualchat.images import ArchivedImage
from visualchat.images.decode import MAX_PIXELS, decode_image

ORIENTATION = 0x0112
RED, GREEN, BLUE, GREY = (220, 20, 30), (20, 200, 40), (30, 40, 210), (128, 128, 128)


def encoded(picture, form="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def pixels(picture):
    assert picture.mode == "RGB"
    return np.asarray(picture)


def noise(height=5, width=7):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def quarters():
    """Four colours in the corners of a picture twice as wide as high, in blocks that JPEG keeps apart."""
    rows = [[RED, GREEN], [BLUE, GREY]]
    return Image.fromarray(np.array(rows, np.uint8).repeat(16, axis=0).repeat(32, axis=1))


def assert_close(found, expected):
    """Equal but for what JPEG and the conversion of colours lose on areas of one colour."""
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 4


def test_rgb_stays_as_it_is_in_every_form(tmp_path):
    picture = noise()
    path = tmp_path / "my picture.png"
    picture.save(path)
    forms = [picture, path, path.read_bytes(), Image.open(path)]
    for form in forms:
        assert np.array_equal(pixels(decode_image(form)), pixels(picture))


def test_the_original_is_left_alone():
    picture = noise()
    before = picture.tobytes()
    decode_image(picture).putpixel((0, 0), (1, 2, 3))
    assert picture.tobytes() == before


TURNS = {  # what makes the stored pixels upright (EXIF 2.32, tag Orientation)
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.swapaxes(0, 1),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: np.rot90(p, 2).swapaxes(0, 1),
    8: lambda p: np.rot90(p),
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("form", ["bytes", "file", "opened"])
def test_a_photo_is_turned_as_its_exif_says(tmp_path, orientation, form):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / "photo.jpg"
    path.write_bytes(encoded(quarters(), "JPEG", quality=95, subsampling=0, exif=exif))
    source = {"bytes": path.read_bytes(), "file": path, "opened": Image.open(path)}[form]
    once = decode_image(source)
    assert_close(pixels(once), TURNS[orientation](pixels(quarters())))
    assert np.array_equal(pixels(decode_image(once)), pixels(once))  # turned once, not again


def test_palette():
    picture = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "L").convert("P")
    picture.putpalette([*RED, *GREEN, *BLUE])
    assert pixels(decode_image(encoded(picture))).tolist() == [[[*RED], [*GREEN]], [[*BLUE], [*GREEN]]]


def test_palette_with_transparency_lies_on_white():
    picture = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "L").convert("P")
    picture.putpalette([*RED, *GREEN, *BLUE])
    found = pixels(decode_image(encoded(picture, transparency=bytes([255, 0, 255]))))
    assert found.tolist() == [[[*RED], [255, 255, 255], [*BLUE]]]


def test_one_transparent_colour_lies_on_white():
    picture = Image.fromarray(np.array([[RED, GREEN]], np.uint8))
    assert pixels(decode_image(encoded(picture, transparency=GREEN))).tolist() == [[[*RED], [255, 255, 255]]]
    grey = Image.fromarray(np.array([[9, 200]], np.uint8))
    assert pixels(decode_image(encoded(grey, transparency=9))).tolist() == [[[255] * 3, [200] * 3]]


def test_transparency_lies_on_white():
    """A share a of the colour and 1 - a of white."""
    picture = Image.fromarray(np.array([[[*RED, 255], [*RED, 0], [0, 0, 0, 51]]], np.uint8))
    found = pixels(decode_image(encoded(picture)))
    assert found.tolist() == [[[*RED], [255, 255, 255], [204, 204, 204]]]
    grey = Image.fromarray(np.array([[[10, 255], [10, 0], [0, 51]]], np.uint8), "LA")
    assert pixels(decode_image(encoded(grey))).tolist() == [[[10] * 3, [255] * 3, [204] * 3]]


def test_grey_and_one_bit():
    grey = Image.fromarray(np.array([[0, 7, 255]], np.uint8))
    assert pixels(decode_image(encoded(grey))).tolist() == [[[0] * 3, [7] * 3, [255] * 3]]
    bits = Image.fromarray(np.array([[True, False]]))
    assert bits.mode == "1"
    assert pixels(decode_image(encoded(bits))).tolist() == [[[255] * 3, [0] * 3]]


def test_cmyk_photo():
    data = encoded(quarters().convert("CMYK"), "JPEG", quality=95, subsampling=0)
    assert Image.open(io.BytesIO(data)).mode == "CMYK"
    assert_close(pixels(decode_image(data)), pixels(quarters()))


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(form):
    levels = np.array([[0, 1, 100, 254, 255]], np.uint8)
    picture = Image.fromarray(levels.astype(np.uint16) * 257)
    found = pixels(decode_image(encoded(picture, form)))
    assert found.tolist() == levels[..., None].repeat(3, axis=2).tolist()
    assert pixels(decode_image(picture)).tolist() == found.tolist()
    assert pixels(decode_image(picture.convert("I"))).tolist() == found.tolist()


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (4, 3), colour) for colour in (RED, GREEN, BLUE)]
    path = tmp_path / "a.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert Image.open(path).n_frames == 3
    assert pixels(decode_image(path)).tolist() == pixels(frames[0]).tolist()


def write(path, data):
    path.write_bytes(data)
    return path


BROKEN = {
    "cut.jpg": (lambda path: write(path, encoded(noise(64, 64), "JPEG")[:-900]), "image file is truncated"),
    "text.png": (lambda path: write(path, b"no picture at all"), "cannot identify image file"),
    "empty.png": (lambda path: write(path, b""), "cannot identify image file"),
    "cut.ppm": (lambda path: write(path, encoded(noise(), "PPM")[:4]), "Reached EOF while reading header"),
    "folder.png": (lambda path: path.mkdir(), "does not exist or is not a file"),
    "missing.png": (lambda path: None, "does not exist or is not a file"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_named_with_its_trouble(tmp_path, name):
    make, trouble = BROKEN[name]
    path = tmp_path / name
    make(path)
    with pytest.raises(ValueError, match="cannot be read as an image") as error:
        decode_image(path, "overruled by the path")
    assert str(error.value).startswith(f"image file {str(path)!r} cannot be read as an image: ")
    assert trouble in str(error.value)


def test_a_path_that_no_file_can_have_is_named():
    with pytest.raises(ValueError, match=r"^image file 'a{5000}' cannot be read as an image: "):
        decode_image(Path("a" * 5000))


@pytest.mark.parametrize("name", ["cut.jpg", "text.png", "empty.png", "cut.ppm"])
def test_broken_bytes_are_called_by_the_name_given(tmp_path, name):
    make, trouble = BROKEN[name]
    data = make(tmp_path / name).read_bytes()
    with pytest.raises(ValueError, match=r"^row 7, image 2 cannot be read as an image: ") as error:
        decode_image(data, "row 7, image 2")
    assert trouble in str(error.value)


def test_a_picture_that_was_opened_but_not_read_is_named(tmp_path):
    path = BROKEN["cut.jpg"][0](tmp_path / "cut.jpg")
    with Image.open(path) as picture, pytest.raises(ValueError, match=r"^row 7 cannot be read .* file is truncated"):
        decode_image(picture, "row 7")


FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "TGA")


def complaint(data):
    try:
        assert decode_image(data, "row 7").mode == "RGB"
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.filterwarnings("ignore:::PIL")
@pytest.mark.parametrize("form", FORMATS)
def test_damage_anywhere_is_a_value_error_or_still_a_picture(form):
    """Files cut at 60 places, and with bytes overwritten at 60 more."""
    data = encoded(noise(24, 20), form)
    assert pixels(decode_image(data)).shape == (24, 20, 3)
    rng = np.random.default_rng(0)
    damaged = [data[:cut] for cut in np.linspace(0, len(data) - 1, 60, dtype=int)]
    for _ in range(60):
        changed = bytearray(data)
        for place in rng.integers(0, min(len(data), 300), 3):
            changed[place] = rng.integers(256)
        damaged.append(bytes(changed))
    complaints = [found for found in map(complaint, damaged) if found is not None]
    assert {found.partition(": ")[0] for found in complaints} == {"row 7 cannot be read as an image"}


def png_that_claims(width, height):
    """The header of a PNG of this size, and next to no pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixel = chunk(b"IDAT", zlib.compress(b"\0\0\0\0"))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixel + chunk(b"IEND", b"")


def test_a_crafted_header_of_one_pixel_opens():
    assert pixels(decode_image(png_that_claims(1, 1))).tolist() == [[[0, 0, 0]]]


@pytest.mark.parametrize(
    ("width", "height", "trouble"),
    [
        (9000, 8000, f"it has 9000 x 8000 pixels, at most {MAX_PIXELS} are allowed"),
        (60_000, 60_000, "could be decompression bomb"),
    ],
)
def test_a_decompression_bomb_is_refused_by_its_header(tmp_path, monkeypatch, width, height, trouble):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("pixels were read"))
    path = write(tmp_path / "bomb.png", png_that_claims(width, height))
    for source, name in ((path, f"image file {str(path)!r}"), (path.read_bytes(), "row 7")):
        with pytest.raises(ValueError, match="cannot be read as an image") as error:
            decode_image(source, "row 7")
        assert str(error.value).startswith(f"{name} cannot be read as an image: ")
        assert trouble in str(error.value)


def test_the_limit_itself_is_allowed(monkeypatch):
    monkeypatch.setattr("visualchat.images.decode.MAX_PIXELS", 35)
    assert decode_image(noise(5, 7)).size == (7, 5)
    with pytest.raises(ValueError, match=r"^row 7 cannot be read as an image: it has 6 x 6 pixels, at most 35 are"):
        decode_image(noise(6, 6), "row 7")


class Shelf:
    """A store of encoded pictures."""

    def __init__(self, **pictures):
        self.pictures = pictures

    def read(self, key):
        return self.pictures[key]


def test_a_picture_in_a_store_is_read_when_it_is_decoded():
    store = Shelf(red=encoded(Image.new("RGB", (2, 2), RED)), broken=b"no picture")
    assert decode_image(ArchivedImage(store, "red")).getpixel((0, 0)) == RED
    with pytest.raises(ValueError, match=r"^row 7, image 2 cannot be read as an image"):
        decode_image(ArchivedImage(store, "broken"), "row 7, image 2")
    with pytest.raises(ValueError, match=r"^row 7 cannot be read as an image: 'gone'"):
        decode_image(ArchivedImage(store, "gone"), "row 7")


@pytest.mark.parametrize("form", ["EPS", "PDF", "ICO", "PCX"])
def test_other_formats_are_refused_with_those_that_are_read(form):
    with pytest.raises(ValueError, match=r"^row 7 cannot be read as an image: cannot identify image file, expected"):
        decode_image(encoded(quarters(), form), "row 7")


def test_an_opened_picture_of_another_format_is_refused(tmp_path):
    path = write(tmp_path / "a.eps", encoded(quarters(), "EPS"))
    with Image.open(path) as picture, pytest.raises(ValueError, match="it is a EPS file, expected one of JPEG, PNG"):
        decode_image(picture, "row 7")


def test_error_texts_tell_no_addresses():
    with pytest.raises(ValueError, match="cannot identify image file") as error:
        decode_image(b"nothing", "row 7")
    assert "0x" not in str(error.value)


@pytest.mark.parametrize("size", [(1, 201), (201, 1)])
def test_a_strip_is_refused(size):
    with pytest.raises(ValueError, match=r"a side may be at most 200 times the other"):
        decode_image(Image.new("RGB", size), "row 7")
    decode_image(Image.new("RGB", (size[0] - (size[0] > 1), size[1] - (size[1] > 1))))


def test_floating_point_values_are_refused():
    with pytest.raises(ValueError, match="it holds floating-point values"):
        decode_image(Image.new("F", (2, 2), 0.5))


def test_a_photo_of_several_pictures_gives_the_first():
    """MPO, as phones write it: a JPEG that holds further pictures."""
    data = encoded(quarters(), "MPO", save_all=True, append_images=[noise(32, 64)], quality=95, subsampling=0)
    assert Image.open(io.BytesIO(data)).format == "MPO"
    assert_close(pixels(decode_image(data)), pixels(quarters()))


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"nonsense"])
def test_damaged_exif_leaves_the_picture_as_it_is(exif):
    data = encoded(quarters(), "JPEG", quality=95, subsampling=0, exif=exif)
    assert_close(pixels(decode_image(data)), pixels(quarters()))


def test_16_bit_grey_with_a_transparent_level_lies_on_white():
    picture = Image.fromarray(np.array([[257, 514]], np.uint16))
    picture.info["transparency"] = 257
    assert pixels(decode_image(picture)).tolist() == [[[255] * 3, [2] * 3]]


def test_a_picture_of_several_threads_of_notes_is_turned_once(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    for form in ("PNG", "WEBP", "TIFF"):
        data = encoded(quarters(), form, exif=exif, **({"lossless": True} if form == "WEBP" else {}))
        once = decode_image(data)
        assert once.size == (32, 64)
        assert decode_image(once).size == (32, 64)
