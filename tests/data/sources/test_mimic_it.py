"""MIMIC-IT in all its layouts, related rows, and the published files' known defects."""

import pytest
from corpora import IMAGE, encoded, jpeg, shade_of

from visualchat.data.sources import MimicIt
from visualchat.data.sources.mimic_it import coco_number, spellings
from visualchat.data.sources.rows import Report


def ins(instruction, answer, images, related=()):
    return {"instruction": instruction, "answer": answer, "image_ids": list(images), "rel_ins_ids": list(related)}


def files(corpus, part, rows, images, form="JPEG"):
    corpus.write(f"MIMIC-IT/{part}_instructions.json", {"meta": {"version": "0.0.1"}, "data": rows})
    corpus.write(f"MIMIC-IT/{part}.json", {id: encoded(shade, form) for id, shade in images.items()})


PAIR = ("SD_IMG_00001_1", "SD_IMG_00001_2")
SHADES = {PAIR[0]: 20, PAIR[1]: 220, "SD_IMG_00002_1": 90, "SD_IMG_00002_2": 150}


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_pairs_with_related_rounds(corpus, expect, form):
    rows = {
        "SD_INS_00001": ins("What changed?", "A car left.", PAIR, ["SD_INS_00003"]),
        "SD_INS_00002": ins("What is new?\nSay it.", "Nothing.", ["SD_IMG_00002_1", "SD_IMG_00002_2"]),
        "SD_INS_00003": ins("Where was it?", "On the left.", PAIR, ["SD_INS_00001"]),
    }
    files(corpus, "SD", rows, SHADES, form)
    source = MimicIt(corpus.root, "SD")
    both = ["S\n\n### Image 1:\n", IMAGE, "\n### Image 2:\n", IMAGE]
    expect(
        source[0],
        [
            *(*both, "\n\n### Question:\nWhat changed?\n\n### Answer:\n", ("A car left.",)),
            *("### Question:\nWhere was it?\n\n### Answer:\n", ("On the left.",)),
        ],
        [20, 220],
    )
    expect(source[1], [*both, "\n\n### Question:\nWhat is new?\nSay it.\n\n### Answer:\n", ("Nothing.",)], [90, 150])
    first, second = source.entries
    assert (first.id, first.group) == ("MIMIC-IT/SD:SD_INS_00001",) * 2
    assert first.members == ("MIMIC-IT/SD:SD_INS_00001", "MIMIC-IT/SD:SD_INS_00003")
    assert first.images == ("MIMIC-IT/SD:SD_IMG_00001_1", "MIMIC-IT/SD:SD_IMG_00001_2")
    assert second.members == ("MIMIC-IT/SD:SD_INS_00002",)
    assert source.report() == Report("otter_mimicit_sd", 3, 3, 2)
    assert (corpus.root / ".visualchat").is_dir()


def test_only_rows_with_the_same_images_merge(corpus):
    """Related rows with other pictures are examples of the same task; a chain of relations is one dialogue."""
    rows = {
        "a": ins("1", "1", PAIR, ["b", "x", "other", "turned"]),
        "b": ins("2", "2", PAIR, ["c"]),
        "c": ins("3", "3", PAIR),
        "other": ins("4", "4", ["SD_IMG_00002_1", "SD_IMG_00002_2"], ["a"]),
        "turned": ins("5", "5", PAIR[::-1], ["a"]),
        "alone": ins("6", "6", PAIR),
        "self": ins("7", "7", PAIR, ["self", "gone"]),
    }
    files(corpus, "SD", rows, SHADES)
    source = MimicIt(corpus.root, "SD")
    assert [[m.partition(":")[2] for m in entry.members] for entry in source.entries] == [
        ["a", "b", "c"],
        ["other"],
        ["turned"],
        ["alone"],
        ["self"],
    ]
    assert source.report() == Report(
        "otter_mimicit_sd",
        7,
        7,
        5,
        notes={"related ids that do not exist": 2, "related rows that show other images": 4},
    )


def test_general_pairs_read_coco_in_full_size(corpus, expect):
    """Ids of 12 digits, of 16, and with an infix lead to the COCO file of that number."""
    for number, shade in ((69568, 10), (328270, 110), (7, 210)):
        corpus.jpeg(f"coco/train2017/{number:012d}.jpg", shade)
    rows = {
        "CGD_INS_000000": ins("Q", "A", ["CGD_IMG_0000000000069568", "CGD_IMG_000000328270"], ["CGD_INS_000001"]),
        "CGD_INS_000001": ins("R", "B", ["CGD_IMG_000000069568", "CGD_IMG_000000328270"], ["CGD_INS_000000"]),
        "LA_00_INS_000000": ins("T", "C", ["LA_00_IMG_000000000007"]),
    }
    corpus.write("MIMIC-IT/CGD_instructions.json", {"meta": {}, "data": rows})
    source = MimicIt(corpus.root, "CGD", coco_folder="coco/train2017")
    expect(
        source[0],
        [
            *("S\n\n### Image 1:\n", IMAGE, "\n### Image 2:\n", IMAGE, "\n\n### Question:\nQ\n\n### Answer:\n", ("A",)),
            *("### Question:\nR\n\n### Answer:\n", ("B",)),
        ],
        [10, 110],
    )
    assert source.entries[1].images == ("coco/train2017/000000000007.jpg",)
    assert source.report().members == 3
    assert source.prepare() == source.report()
    assert not (corpus.root / ".visualchat").exists()


@pytest.mark.parametrize("part", ["SN", "TVC", "VST"])
def test_rows_with_many_images_are_left_out_and_counted(corpus, part):
    ids = [f"{part}_IMG_{n}" for n in range(12)]
    rows = {f"{part}_INS_{n}": ins("Q", "A", ids[:n]) for n in (1, 8, 9, 12)}
    files(corpus, part, rows, {id: 20 * n for n, id in enumerate(ids)})
    source = MimicIt(corpus.root, part, max_images=8)
    assert [len(dialogue.images) for dialogue in source] == [1, 8]
    assert source.report() == Report(f"otter_mimicit_{part.lower()}", 4, 2, 2, left_out={"too many images": 2})
    source = MimicIt(corpus.root, part, max_images=None)
    assert [len(dialogue.images) for dialogue in source] == [1, 8, 9, 12]
    assert [shade_of(image) for image in source[3].images] == pytest.approx([20 * n for n in range(12)], abs=3)


@pytest.mark.parametrize(
    ("named", "held"),
    [
        (f"TVC_IMG_{'castle_s07e09_seg02_clip_02_' * 2}00009", "TVC_IMG_castle_s07e09_seg02_clip_02_00009"),
        (
            "TVC_IMG_s04e13_seg01_clip_00_bbt_s04e13_seg01_clip_00_00003",
            "TVC_IMG_bbt_s04e13_seg01_clip_00_00003",
        ),
        ("TVC_IMG_s04e13_seg01_clip_00_00003", "TVC_IMG_s04e13_seg01_clip_00_00003"),
        ("TVC_IMG_s04e13_seg01_clip_00_00003", f"TVC_IMG_{'s04e13_seg01_clip_00_' * 2}00003"),
        (
            "TVC_IMG_bbt_s04e13_seg01_clip_00_00003",
            "TVC_IMG_s04e13_seg01_clip_00_bbt_s04e13_seg01_clip_00_00003",
        ),
    ],
)
def test_tv_captions_find_clips_that_are_named_twice_or_cut(corpus, named, held):
    assert held in spellings(named)
    files(corpus, "TVC", {"TVC_INS_1": ins("Q", "A", [named])}, {held: 50, "TVC_IMG_other_clip_00_00003": 90})
    source = MimicIt(corpus.root, "TVC")
    assert [shade_of(image) for image in source[0].images] == pytest.approx([50], abs=3)
    assert source.entries[0].images == (f"MIMIC-IT/TVC:{held}",)


DAMAGED = {
    "unknown image": (ins("Q", "A", [PAIR[0], "SD_IMG_99999_1"]), "unknown image id"),
    "no images": (ins("Q", "A", []), "no image"),
    "images is text": ({**ins("Q", "A", []), "image_ids": PAIR[0]}, "wrong form"),
    "image id is a number": (ins("Q", "A", [7]), "wrong form"),
    "empty answer": (ins("Q", "  ", PAIR), "empty answer"),
    "empty question": (ins("\n", "A", PAIR), "empty question"),
    "answer is missing": ({"instruction": "Q", "image_ids": list(PAIR)}, "wrong form"),
    "related is text": ({**ins("Q", "A", PAIR), "rel_ins_ids": "abc"}, "wrong form"),
    "related holds a list": ({**ins("Q", "A", PAIR), "rel_ins_ids": [["a"]]}, "wrong form"),
    "not an object": ("Q", "wrong form"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_row_is_rejected_and_its_relatives_stay(corpus, case):
    bad, reason = DAMAGED[case]
    rows = {"a": ins("1", "1", PAIR, ["bad"]), "bad": bad, "b": ins("2", "2", PAIR, ["a"])}
    files(corpus, "SD", rows, SHADES)
    source = MimicIt(corpus.root, "SD", on_error="skip")
    assert source.report() == Report("otter_mimicit_sd", 3, 2, 1, rejected={reason: 1})
    assert str(source.errors[0]).startswith(f"otter_mimicit_sd, row bad: {reason}: ")
    with pytest.raises(ValueError, match="1 of 3 rows are damaged"):
        len(MimicIt(corpus.root, "SD"))


@pytest.mark.parametrize("id", ["CGD_IMG_", "CGD_IMG_12a", "CGD_IMG_../12", "CGD_IMG_²", f"CGD_IMG_{7:05000}"])
def test_an_id_without_a_number_is_no_coco_image(corpus, id):
    with pytest.raises(ValueError, match="unknown image id"):
        coco_number(id)


def test_an_id_of_thousands_of_digits_is_one_bad_row(corpus):
    """Python refuses to read such a number at all; the file's name is not even tried."""
    corpus.jpeg("coco/train2017/000000000001.jpg", 20)
    rows = {"good": ins("1", "1", ["CGD_IMG_000000000001"]), "bad": ins("2", "2", [f"CGD_IMG_{'7' * 5000}"])}
    files(corpus, "CGD", rows, {})
    source = MimicIt(corpus.root, "CGD", coco_folder="coco/train2017", on_error="skip")
    assert source.report() == Report("otter_mimicit_cgd", 2, 1, 1, rejected={"unknown image id": 1})
    assert len(str(source.errors[0])) < 200


def test_duplicate_ids_are_counted_not_lost(corpus):
    one, two = (f'"a": {{"instruction": "{q}", "answer": "A", "image_ids": ["SD_IMG_00001_1"]}}' for q in "QR")
    files(corpus, "SD", {}, SHADES)
    corpus.write("MIMIC-IT/SD_instructions.json", f'{{"meta": {{}}, "data": {{{one}, {two}}}}}')
    source = MimicIt(corpus.root, "SD", on_error="skip")
    assert source.report() == Report("otter_mimicit_sd", 2, 1, 1, rejected={"duplicate id": 1})
    assert source[0].turns[0].question == "Q"


def test_missing_parts_are_named(corpus):
    corpus.write("MIMIC-IT/readme", "")
    with pytest.raises(ValueError, match=r"otter_mimicit_sd: no instructions; expected MIMIC-IT/SD_instructions.json"):
        len(MimicIt(corpus.root, "SD"))
    corpus.write("MIMIC-IT/SD_instructions.json", {"meta": {}, "data": {"a": ins("Q", "A", PAIR)}})
    with pytest.raises(ValueError, match=r"otter_mimicit_sd: no images; expected MIMIC-IT/SD.json"):
        len(MimicIt(corpus.root, "SD"))
    corpus.write("MIMIC-IT/SD_instructions.json", [1])
    with pytest.raises(ValueError, match=r"SD_instructions.json: expected \{\"meta\""):
        len(MimicIt(corpus.root, "SD"))


def parquet(corpus, name, columns):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = corpus.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def test_images_in_a_parquet_table_with_one_column(corpus, tmp_path_factory):
    """The later release: the id is the index, one column holds base64; unpacked once into the cache."""
    cache = tmp_path_factory.mktemp("cache")
    files(corpus, "SD", {"a": ins("Q", "A", PAIR)}, {})
    (corpus.root / "MIMIC-IT" / "SD.json").unlink()
    parquet(
        corpus,
        "MIMIC-IT/SD.parquet",
        {"base64": [encoded(shade) for shade in SHADES.values()], "__index_level_0__": list(SHADES)},
    )
    for _ in range(2):
        source = MimicIt(corpus.root, "SD", cache=cache)
        assert [shade_of(image) for image in source[0].images] == pytest.approx([20, 220], abs=3)
    assert sorted(path.suffix for path in cache.iterdir()) == [".index", ".lock", ".pack"]


def test_the_hubs_tables(corpus, expect):
    """Folders of shards: images as files' bytes, instructions with their ids in columns."""
    images = [(id, {"bytes": jpeg(shade), "path": None}) for id, shade in SHADES.items()]
    for number, part in enumerate((images[:3], images[3:])):
        columns = {"id": [id for id, _ in part], "image": [image for _, image in part]}
        parquet(corpus, f"MIMIC-IT/SD_Images/train-{number:05d}-of-00002.parquet", columns)
    parquet(
        corpus,
        "MIMIC-IT/SD_Instructions/train-00000-of-00001.parquet",
        {
            "id": ["a", "b", "c"],
            "instruction": ["Q", "R", "T"],
            "answer": ["A", "B", None],
            "images": [list(PAIR)] * 3,
            "related instructions": [["b"], [], ["a"]],
        },
    )
    source = MimicIt(corpus.root, "SD", on_error="skip")
    assert source.report() == Report("otter_mimicit_sd", 3, 2, 1, rejected={"wrong form": 1})
    expect(
        source[0],
        [
            *("S\n\n### Image 1:\n", IMAGE, "\n### Image 2:\n", IMAGE, "\n\n### Question:\nQ\n\n### Answer:\n", ("A",)),
            *("### Question:\nR\n\n### Answer:\n", ("B",)),
        ],
        [20, 220],
    )


def test_a_table_of_another_form_is_named(corpus):
    files(corpus, "SD", {"a": ins("Q", "A", PAIR)}, {})
    (corpus.root / "MIMIC-IT" / "SD.json").unlink()
    parquet(corpus, "MIMIC-IT/SD.parquet", {"name": ["a"], "base64": ["QQ=="]})
    with pytest.raises(ValueError, match=r"SD.parquet, image row 1: expected an id and a column image or base64"):
        len(MimicIt(corpus.root, "SD"))
    corpus.write("MIMIC-IT/SD.parquet", b"PAR1 no")
    with pytest.raises(ValueError, match=r"file SD.parquet cannot be read as Parquet"):
        len(MimicIt(corpus.root, "SD"))
