"""The paper's nine datasets in the form in which they were published, small, with pictures made here."""

from corpora import Corpus, encoded

TAG = "<Img><ImageHere></Img>"


def coco(number):
    return f"{number:012d}"


def conversations(id, rounds):
    return [
        {"from": speaker, "value": f"{'<image>' if n == 0 and speaker == 'human' else ''}{speaker} {id} {n}"}
        for n in range(rounds)
        for speaker in ("human", "gpt")
    ]


def llava_rows(kind, count, rounds, images):
    names = (coco(1 + n % images) for n in range(count))
    return [
        {"id": f"{kind}{n}", "image": f"{name}.jpg", "conversations": conversations(f"{kind}{n}", rounds)}
        for n, name in enumerate(names)
    ]


def ins(part, n, images, related):
    row = {"instruction": f"Q {part} {n}", "answer": f"A {part} {n}", "image_ids": images}
    return {f"{part}_INS_{n:05d}": {**row, "rel_ins_ids": [f"{part}_INS_{r:05d}" for r in related]}}


def write_published(corpus: Corpus) -> None:
    """Fill a data root with all nine datasets; every picture has a shade of its own number."""
    for number in range(1, 13):
        corpus.jpeg(f"coco/train2017/{coco(number)}.jpg", 20 * number)
    corpus.write("llava/detail_23k.json", llava_rows("d", 40, 1, 12))
    corpus.write("llava/complex_reasoning_77k.json", llava_rows("c", 60, 2, 12))
    corpus.write("llava/conversation_58k.json", llava_rows("t", 50, 3, 10))
    rows: dict = {}
    for n in range(0, 60, 2):
        pair = [f"CGD_IMG_{coco(1 + n % 12)}", f"CGD_IMG_{coco(1 + (n + 3) % 12)}"]
        rows |= ins("CGD", n, pair, [n + 1]) | ins("CGD", n + 1, pair, [n])
    corpus.write("MIMIC-IT/CGD_instructions.json", {"meta": {}, "data": rows})
    for part, images in (("SD", 2), ("SN", 5), ("TVC", 9), ("VST", 8)):
        shown = {n: [f"{part}_IMG_{n}_{k}" for k in range(images + n % 2)] for n in range(30)}
        data: dict = {}
        for n, ids in shown.items():
            data |= ins(part, n, ids, [])
        corpus.write(f"MIMIC-IT/{part}_instructions.json", {"meta": {}, "data": data})
        names = [id for ids in shown.values() for id in ids]
        corpus.write(f"MIMIC-IT/{part}.json", {id: encoded(10 + n % 200) for n, id in enumerate(names)})
    for part, count in (("CC", 30), ("VG", 15)):
        talks = []
        for n in range(count):
            corpus.jpeg(f"SparklesDialogue{part}/images/{n}.jpg", 5 * n)
            images = [{"image_id": n, "caption": "x"}]
            question = {"role": "user", "images": images, "content": f"Q {part} {n}: IMAGE#{n}{TAG}?"}
            answers = [{"role": "assistant", "content": f"A {part} {n} {k}: IMAGE#{n}."} for k in range(2)]
            talks.append({"dialogue": [question, answers[0], {"role": "user", "content": "More."}, answers[1]]})
        corpus.write(f"SparklesDialogue{part}/annotations/SparklesDialogue{part}.json", talks)
