"""Faults that servers of the field had with images, tried over HTTP; docs/serving.md names each with its test."""

import io

import numpy as np
import pytest
from asking import PATH, alone, body, encoded, part
from PIL import Image

NOISE = np.random.default_rng(0).integers(0, 256, (8, 16), dtype=np.uint8)
RED, BLUE = (255, 0, 0), (0, 0, 255)


def file(image, kind="PNG", **settings):
    found = io.BytesIO()
    image.save(found, kind, **settings)
    return encoded(found.getvalue())


def of_palette(step):
    image = Image.fromarray(NOISE % 4, "P")
    image.putpalette([value * step % 256 for value in range(12)])
    return image


def digest(client, url):
    response = client.post("/v1/images", json={"image_url": {"url": url}})
    assert response.status_code == 200, response.text
    return response.json()


def test_images_of_equal_bytes_are_told_apart(client, loud, processor):
    """Whose shape, mode or palette alone is another one: none is taken for another that was shown before."""
    images = [
        Image.fromarray(NOISE),
        Image.fromarray(NOISE.reshape(16, 8)),
        Image.fromarray(NOISE.reshape(4, 32)),
        of_palette(19),
        of_palette(23),
    ]
    assert len({image.tobytes() for image in images}) == 2
    for image in images:
        told = digest(client, file(image))
        assert not told["known"]
        message = {"role": "user", "content": [part(file(image)), {"type": "text", "text": "What is it?"}]}
        said = client.post(PATH, json=body(message)).json()["choices"][0]["message"]["content"]
        assert said == alone(loud, processor, message)
    assert len({digest(client, file(image))["digest"] for image in images}) == 5


def on_its_side():
    shown = Image.new("RGB", (6, 4), RED)
    shown.paste(BLUE, (0, 0, 3, 4))
    note = Image.Exif()
    note[0x0112] = 6  # turn right to see it
    return file(shown, exif=note), file(shown.transpose(Image.Transpose.ROTATE_270))


def of_16_bits():
    grey = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1040
    return file(Image.fromarray(grey)), file(Image.fromarray(np.round(grey / 257).astype(np.uint8)))


def with_hidden_colour():
    shown = Image.new("RGBA", (4, 4), (*RED, 0))
    return file(shown), file(Image.new("RGB", (4, 4), (255, 255, 255)))


@pytest.mark.parametrize("pair", [on_its_side, of_16_bits, with_hidden_colour])
def test_an_image_is_what_people_see(client, pair):
    """Turned as its camera says, 16 bits scaled and not cut to white, nothing of what transparency hides."""
    sent, seen = pair()
    found, expected = digest(client, sent), digest(client, seen)
    assert (found["digest"], found["width"]) == (expected["digest"], expected["width"])


EMBEDDED = [
    {"type": "image_embeds", "image_embeds": "gASVAAAA"},
    {"type": "image_pil", "image_pil": "gASVAAAA"},
    {"type": "image_url", "image_url": {"url": "data:application/x-torch;base64,gASVAAAA"}},
    {"type": "image_url", "image_url": {"url": "data:image/npy;base64,gASVAAAA"}},
    {"type": "image_url", "image_url": {"path": "/etc/hostname", "url": "data:image/png;base64,"}},
]


@pytest.mark.parametrize("item", EMBEDDED, ids=lambda item: str(item)[:60])
def test_no_tensor_and_no_path_comes_in(client, item):
    response = client.post(PATH, json=body({"role": "user", "content": [item]}))
    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith("messages[0].content[0]")


@pytest.mark.parametrize("field", ["prompt_embeds", "mm_processor_kwargs", "chat_template", "media_io_kwargs", "echo"])
def test_no_request_sets_how_the_server_works(client, field):
    response = client.post(PATH, json=body({"role": "user", "content": "?"}, **{field: {"a": "b"}}))
    assert response.status_code == 400
    assert response.json()["error"]["param"] == field
