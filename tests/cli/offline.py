"""Reads what W&B keeps of an offline run: a file of records in the log format of LevelDB, each a protocol buffer."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

from wandb.proto.wandb_internal_pb2 import Record

BLOCK, HEADER, FIRST = 32768, 7, 7  # bytes of a block, of a piece's header, and before the first piece


def records(path: Path) -> Iterator[Record]:
    """Every record of a `.wandb` file; one may be cut into pieces, and no piece goes over the end of a block."""
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    at, whole = FIRST, b""
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + HEADER])
        whole += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (1, 4):  # a whole record, or its last piece
            found = Record()
            found.ParseFromString(whole)
            whole = b""
            yield found


def read(folder: Path) -> dict:
    """The run of an offline folder: name, group, config, exit code, and the history as a list of rows."""
    (path,) = folder.glob("*.wandb")
    run: dict = {"config": {}, "history": []}
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run |= {"name": record.run.display_name, "group": record.run.run_group, "project": record.run.project}
            run["config"] |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "config":
            for item in record.config.update:
                run["config"][item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
        elif kind == "history":
            items = record.history.item
            run["history"].append({i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items})
        elif kind == "exit":
            run["exit"] = record.exit.exit_code
    return run
