"""Files taken apart by the tables of docs/reference/formats.md alone: what the page says of each byte, read from the page."""

import json
import re

import numpy as np

from mojo_programs import ROOT

PAGE = ROOT / "docs/reference/formats.md"
TYPES = {"int32": "<i4", "uint16": "<u2", "uint32": "<u4", "uint64": "<u8", "float32": "<f4", "bfloat16": "<u2"}
KINDS = {
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "text": str,
    "object": dict,
    "list of numbers": list,
    "list of objects": list,
    "null": type(None),
}


def tables(heading):
    """The tables of a section: lists of rows, each a dictionary by the names of the columns."""
    section = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    found = []
    for block in re.findall(r"(?:^\|.*\|\n)+", section[1], re.MULTILINE):
        rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in block.splitlines()]
        found.append([dict(zip(rows[0], row, strict=True)) for row in rows[2:]])
    return found


class Reader:
    """Bytes, a place in them, and the fields that have been read."""

    def __init__(self, content, **known):
        self.content, self.at, self.fields = content, 0, known

    def read(self, table, **instead):
        """Reads the fields of a table; `instead` has other types for some. Returns all fields so far."""
        for row in table:
            name, kind = row["name"].strip("`"), instead.get(row["type"], row["type"])
            if row["byte"] != "next":
                self.at = int(row["byte"])
            if kind == "bytes":
                self.fields[name] = [self._token() for _ in range(self.fields[row["shape"].strip("`")])]
                continue
            shape = eval(row["shape"].strip("`"), {}, dict(self.fields)) if row["shape"] else ()
            shape = shape if isinstance(shape, tuple) else (shape,)
            count = int(np.prod(shape, dtype=np.int64))
            values = np.frombuffer(self.content, TYPES[kind], count, self.at).reshape(shape)
            self.at += values.nbytes
            self.fields[name] = values if row["shape"] else int(values)
            if always := re.match(r"always (\d+)", row["what it is"]):
                assert self.fields[name] == int(always[1]), (name, self.fields[name])
        return self.fields

    def _token(self):
        size = self.content[self.at]
        self.at += 1 + size
        return self.content[self.at - size : self.at]


def expect_object(found, table, complete=True):
    """Checks that a JSON object has the names of a table with values of its types, and no others."""
    known = {row["name"].strip("`"): row["type"] for row in table}
    assert found.keys() <= known.keys(), found.keys() - known.keys()
    for name, value in found.items():
        kinds = [KINDS[kind] for kind in known[name].split(" or ")]
        assert any(isinstance(value, kind) for kind in kinds), (name, value)
    if complete:
        assert known.keys() <= found.keys(), known.keys() - found.keys()


def lines(path):
    """The objects of a .jsonl file."""
    return [json.loads(line) for line in path.read_text().splitlines()]
