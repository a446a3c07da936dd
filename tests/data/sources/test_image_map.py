"""Pictures out of base64 files: every form of JSON, an index that several processes make at once, bounded memory."""

import base64
import io
import json
import os
import pickle
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from visualchat.data.sources import image_map as index
from visualchat.data.sources import json_scan
from visualchat.data.sources.image_map import ImageMap
from visualchat.data.sources.json_scan import scan_map

SRC = str(Path(index.__file__).parents[3])


def image_map(path, cache=None) -> ImageMap:
    return ImageMap((path,), "part", cache or path.parent / "cache")


def written(tmp_path, content, name="SD.json"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


FORMS = {
    "compact": lambda m: json.dumps(m, separators=(",", ":")).encode(),
    "indented": lambda m: json.dumps(m, indent=4).encode(),
    "slashes escaped": lambda m: json.dumps(m).replace("/", "\\/").encode(),
    "byte order mark": lambda m: b"\xef\xbb\xbf" + json.dumps(m).encode(),
    "white space around": lambda m: b" \r\n\t" + json.dumps(m).encode() + b"\n \n",
    "not ASCII": lambda m: json.dumps(m, ensure_ascii=False).encode(),
}


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1 << 20])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_json_in_chunks_of_any_size(tmp_path, monkeypatch, form, chunk):
    pictures = {f"SD_IMG_{n:05d}_1": os.urandom(n) for n in range(30)}
    pictures |= {'a "quoted" \\ id': b"\xfb\xff\xbf" * 4, "é ☃": b"1", "\\": b"2", "": b"3"}
    monkeypatch.setattr(json_scan, "_CHUNK", chunk)
    found = image_map(written(tmp_path, FORMS[form]({key: encoded(data) for key, data in pictures.items()})))
    assert len(found) == len(pictures)
    assert {key: found.read(key) for key in pictures} == pictures
    assert "SD_IMG_00007_1" in found
    assert "SD_IMG_00007" not in found
    assert 7 not in found


def test_an_empty_map(tmp_path):
    found = image_map(written(tmp_path, b" { } "))
    assert len(found) == 0
    with pytest.raises(ValueError, match=r"SD.json: image id 'a' is unknown"):
        found.read("a")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"byte 0: expected '\{', found the end of the file \(is the download complete"),
        (b"[]", r"byte 1: expected '\{', found '\['"),
        (b'{"a": "QQ==', r"byte 11: expected a closing quote, found the end of the file"),
        (b'{"a": "QQ=="', r"byte 12: expected a comma or the closing brace, found the end"),
        (b'{"a": "QQ=="} x', r"byte 15: expected nothing after the closing brace, found 'x'"),
        (b'{"a": {"b": "QQ=="}}', r"expected base64 text in quotes for id 'a', found '\{'"),
        (b'{"a": null}', r"expected base64 text in quotes for id 'a', found 'n'"),
        (b'{"a" "QQ=="}', r"expected ':', found '\"'"),
        (b'{"a": "QQ==" "b": "QQ=="}', r"expected a comma or the closing brace"),
        (b'{"a": "QQ==",}', r"expected an id in quotes, found '\}'"),
        (b'{"a\\q": "QQ=="}', r"expected a valid id"),
    ],
)
def test_what_is_no_map_is_refused_at_its_byte(tmp_path, content, message):
    with pytest.raises(ValueError, match=r"SD.json, .*" + message):
        len(image_map(written(tmp_path, content)))
    assert not list((tmp_path / "cache").glob("*.index"))


@pytest.mark.parametrize("value", ['"Q=Q="', '"QQ"', '"QQ==\\n"', '"\\u00e9"', '"Q Q=="'])
def test_bad_base64_is_named_when_it_is_read(tmp_path, value):
    found = image_map(written(tmp_path, f'{{"good": "QQ==", "bad": {value}}}'.encode()))
    assert found.read("good") == b"A"
    with pytest.raises(ValueError, match=r"SD.json: image 'bad' is not valid base64"):
        found.read("bad")


def test_an_id_twice_with_one_picture_is_fine_with_two_it_is_not(tmp_path):
    found = image_map(written(tmp_path, b'{"a": "QQ==", "b": "Qg==", "a": "QQ==", "b": "Qw=="}'))
    assert found.read("a") == b"A"
    with pytest.raises(ValueError, match="image id 'b' occurs more than once, with different images"):
        found.read("b")


def test_ids_with_one_digest_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "_digest", lambda key: 5)
    found = image_map(written(tmp_path, {"a": "QQ==", "b": "Qg==", "c": "Qw=="}))
    assert [found.read(key) for key in "abc"] == [b"A", b"B", b"C"]
    with pytest.raises(ValueError, match="'d' is unknown"):
        found.read("d")


def test_the_index_is_made_once_and_again_when_the_file_changes(tmp_path, monkeypatch):
    scans = []
    monkeypatch.setattr(index, "scan_map", lambda *a: scans.append(1) or scan_map(*a))
    path = written(tmp_path, {"a": "QQ=="})
    assert image_map(path).prepare() == 1
    assert image_map(path).read("a") == b"A"
    assert len(scans) == 1
    written(tmp_path, {"a": "QQ==", "b": "Qg=="})
    assert image_map(path).read("b") == b"B"
    assert len(scans) == 2


@pytest.mark.parametrize("damage", [b"", b"{}", b"no json\n", b'{"version": 0}\n'])
def test_a_damaged_index_is_made_anew(tmp_path, damage):
    path = written(tmp_path, {"a": "QQ=="})
    image_map(path).prepare()
    (made,) = (tmp_path / "cache").glob("*.index")
    whole = made.read_bytes()
    made.write_bytes(damage)
    assert image_map(path).read("a") == b"A"
    assert made.read_bytes() == whole
    made.write_bytes(whole[:-1])
    assert image_map(path).read("a") == b"A"
    assert made.read_bytes() == whole


def test_files_of_one_name_do_not_share_an_index(tmp_path):
    for folder, text in (("one", "QQ=="), ("two", "Qg==")):
        (tmp_path / folder).mkdir()
        path = written(tmp_path / folder, {"a": text})
        os.utime(path, (0, 0))
    assert image_map(tmp_path / "one" / "SD.json", tmp_path / "cache").read("a") == b"A"
    assert image_map(tmp_path / "two" / "SD.json", tmp_path / "cache").read("a") == b"B"


def test_errors_of_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"image file SD.json does not exist"):
        len(image_map(tmp_path / "SD.json"))
    path = written(tmp_path, {"a": "QQ=="})
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"index of SD.json cannot be written .*choose another folder by cache="):
        len(image_map(path, tmp_path / "file"))


def test_a_map_travels_to_workers_without_its_index(tmp_path):
    found = image_map(written(tmp_path, {f"{n}": "QQ==" for n in range(5000)}))
    assert found.read("77") == b"A"
    frozen = pickle.dumps(found)
    assert len(frozen) < 1000
    again = pickle.loads(frozen)
    assert again == found
    assert hash(again) == hash(found)
    assert again.read("77") == b"A"


PROCESS = """
import sys, time
from pathlib import Path
sys.path.insert(0, {src!r})
from visualchat.data.sources import image_map as index
from visualchat.data.sources import json_scan
scan, built = index.scan_map, []
def slow(*arguments):
    built.append(1)
    time.sleep(0.4)
    return scan(*arguments)
index.scan_map = slow
path = Path({path!r})
while not path.with_name("go").exists():
    time.sleep(0.01)
found = index.ImageMap((path,), "part", path.parent / "cache")
print(len(found), found.read("k999").decode(), len(built))
"""


def test_two_processes_index_at_once(tmp_path):
    path = written(tmp_path, {f"k{n}": encoded(f"picture {n}".encode()) for n in range(1000)})
    code = PROCESS.format(src=SRC, path=str(path))
    started = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    (tmp_path / "go").touch()
    said = [process.communicate(timeout=120)[0].split() for process in started]
    assert [words[:3] for words in said] == [["1000", "picture", "999"]] * 2
    assert sorted(words[3] for words in said) == ["0", "1"]  # one made it, the other waited
    assert sorted(p.suffix for p in (tmp_path / "cache").iterdir()) == [".index", ".lock"]


def test_a_large_file_costs_little_memory(tmp_path):
    """50 MB of pictures: reading whole would cost more than that, the scan costs the chunk and the places."""
    picture = encoded(os.urandom(75_000))
    path = tmp_path / "SD.json"
    with path.open("w") as stream:
        stream.write("{" + ",".join(f'"SD_IMG_{n:05d}_1": ' for n in range(1)))
        stream.write(f'"{picture}"')
        for n in range(1, 500):
            stream.write(f', "SD_IMG_{n:05d}_1": "{picture}"')
        stream.write("}")
    assert path.stat().st_size > 50_000_000
    tracemalloc.start()
    try:
        found = image_map(path)
        assert len(found) == 500
        assert len(found.read("SD_IMG_00321_1")) == 75_000
        assert tracemalloc.get_traced_memory()[1] < 6_000_000
    finally:
        tracemalloc.stop()


def test_scanning_tells_where_entries_lie():
    content = b'{"a": "QQ==",\n "b\\n": "Qg=="}'
    spans = list(scan_map(io.BytesIO(content)))
    assert [(key, content[start:stop]) for key, start, stop in spans] == [
        ("a", b'"a": "QQ=="'),
        ("b\n", b'"b\\n": "Qg=="'),
    ]
