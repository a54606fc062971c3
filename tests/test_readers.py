"""Readers: the documents are the same however a file is cut, packed, or read on from any place; what is wrong is named."""

import bz2
import gzip
import json
import lzma
import random
import re

import pyarrow
import pyarrow.parquet
import pytest
import regex

from llm_mojo import Error, readers
from llm_mojo.readers import JsonLinesReader, ParquetReader, TextReader, reader_for
from llm_mojo.stories import StoriesReader
from llm_mojo.tokenize import GPT2_PATTERN
from read_documents import documents, joined, starts_and_rests
from stories_archive import STORIES, archive

PIECES = [*("a", "Z", "7", "'", "'s", "!", " ", "  ", "\n", "\t", "\r\n"), *"é東\u00a0\u3000\x1c\x85"]


@pytest.fixture(params=[1, 7, 40])
def small_blocks(request, monkeypatch):
    monkeypatch.setattr(readers, "BLOCK_BYTES", request.param)
    return request.param


def pack(path, content, suffix):
    """Writes bytes, packed by programs that are not ours where there are any."""
    path = path.with_name(path.name + suffix)
    if suffix in (".bz2", ".xz"):
        path.write_bytes((bz2 if suffix == ".bz2" else lzma).compress(content))
    elif suffix == ".zst":
        with pyarrow.CompressedOutputStream(str(path), "zstd") as file:
            file.write(content)
    else:
        path.write_bytes(gzip.compress(content) if suffix == ".gz" else content)
    return path


# ---------------------------------------------------------------------------------------------------------------------
# plain text


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst", ".bz2", ".xz"])
@pytest.mark.parametrize(
    "reader",
    [TextReader(), TextReader("\n\n", keep=True), TextReader("\n\n"), TextReader("<|end|>"), TextReader(" \n ")],
    ids=repr,
)
def test_text(reader, suffix, tmp_path, small_blocks):
    rng = random.Random(small_blocks)
    for _ in range(15):
        text = "".join(rng.choices([*PIECES, "\n\n", "<|end|>", "\n\n\n", " \n "], k=rng.randint(1, 60)))
        path = pack(tmp_path / "t.txt", text.encode(), suffix)
        sections = re.split(f"({re.escape(reader.separator)})".replace("\\\n", "\r?\n"), text)
        if not reader.separator:
            expected = [text]
        elif reader.keep:
            expected = [section + end for section, end in zip(sections[::2], [*sections[1::2], ""])]
        else:
            expected = [section for section in sections[::2] if section]
        for found in (documents(reader, path), documents(reader, path, whole=True)):
            assert [each for each in found if each or reader.keep] == expected
        for pieces in starts_and_rests(reader, path):
            assert [each for each in joined(pieces) if each or reader.keep] == expected
        if not reader.separator:
            assert (
                b"".join(piece for block in reader.blocks(path) for piece, _ in reader.documents(block, as_bytes=True))
                == text.encode()
            )


def test_cuts_do_not_change_tokens(tmp_path, monkeypatch):
    """GPT-2's pattern splits the pieces of a cut text exactly as it splits the whole."""
    rng, pattern, path = random.Random(0), regex.compile(GPT2_PATTERN), tmp_path / "t.txt"
    for _ in range(500):
        text = "".join(rng.choices(PIECES, k=rng.randint(0, 60)))
        path.write_bytes(text.encode())
        monkeypatch.setattr(readers, "BLOCK_BYTES", rng.randint(1, 20))
        reader = TextReader(rng.choice(["", "7", "Z!"]), keep=True)
        pieces = [piece for block in reader.blocks(path) for piece, _ in reader.documents(block)]
        assert "".join(pieces) == text
        if not reader.separator:
            assert [match for piece in pieces for match in pattern.findall(piece)] == pattern.findall(text)


def test_text_without_words_is_cut_between_characters(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "BLOCK_BYTES", 10)
    monkeypatch.setattr(readers, "LONGEST_WORD", 50)
    path = tmp_path / "t.txt"
    path.write_bytes("東".encode() * 1000)
    sizes = [block.size for block in TextReader().blocks(path)]
    assert sum(sizes) == 3000 and max(sizes) <= 60 and all(size % 3 == 0 for size in sizes)
    with pytest.raises(
        Error, match="cleaning takes whole documents of up to 100 bytes, found a longer one at offset 0"
    ):
        monkeypatch.setattr(readers, "LONGEST_DOCUMENT", 100)
        list(TextReader().blocks(path, whole=True))


@pytest.mark.parametrize("letter", [b"a", b" ", "東".encode(), "🙂".encode()])
def test_a_long_line_takes_time_in_proportion(letter, tmp_path):
    path = tmp_path / "t.txt"
    path.write_bytes(letter * (10_000_000 // len(letter)))
    assert sum(block.size for block in TextReader().blocks(path)) == path.stat().st_size


def test_a_large_file_streams(tmp_path):
    """Blocks come one at a time: after the first, little of the file is read."""
    path = tmp_path / "t.txt"
    path.write_bytes(b"word " * 2_000_000)
    blocks = TextReader().blocks(path)
    assert next(blocks).read < 2_000_000
    assert list(blocks)[-1].read == 10_000_000


# ---------------------------------------------------------------------------------------------------------------------
# JSON lines and parquet

TEXTS = ["one", "two\nlines", "東 é \U0001f642", " " * 30, *(f"document {i}" * (i % 7) for i in range(1, 400))]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst", ".bz2", ".xz"])
def test_json_lines(tmp_path, suffix, small_blocks):
    lines = [json.dumps({"n": i, "body": text}, ensure_ascii=i % 2 == 0) for i, text in enumerate(TEXTS[:80])]
    for end in ("\n", "", "\n\n"):
        path = pack(tmp_path / "t.jsonl", ("\n".join(lines) + end).encode(), suffix)
        reader = reader_for(path, field="body")
        assert reader == JsonLinesReader("body")
        assert documents(reader, path) == [text for text in TEXTS[:80] if text]
    for pieces in starts_and_rests(reader, path):
        assert joined(pieces) == [text for text in TEXTS[:80] if text]


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string()])
@pytest.mark.parametrize("rows", [7, 1000])
def test_parquet(tmp_path, rows, kind, monkeypatch):
    monkeypatch.setattr(readers, "BLOCK_BYTES", 500)
    monkeypatch.setattr(readers, "ROWS", 9)
    path, texts = tmp_path / "t.parquet", [text for text in TEXTS if text]
    table = pyarrow.table({"n": range(len(texts)), "text": pyarrow.array(texts, kind)})
    pyarrow.parquet.write_table(table, path, row_group_size=rows)
    reader = reader_for(path)
    assert reader == ParquetReader("text")
    assert documents(reader, path) == texts
    assert len(list(reader.blocks(path))) > 10
    for pieces in starts_and_rests(reader, path):
        assert joined(pieces) == texts
    for row in range(0, len(texts), 5):
        assert documents(reader, path, row) == texts[row:]


def test_stories_from_every_place(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "BLOCK_BYTES", 300)
    path = tmp_path / "t.tar.gz"
    path.write_bytes(archive(STORIES))
    expected = ["he", "ll", "hell", 'a "quoted" 東 é', *(f"story {i}" for i in range(500))]
    count = 0
    for pieces in starts_and_rests(StoriesReader(), path):
        assert joined(pieces) == expected
        count += 1
    assert count > 10
    splits = {block.split: None for block in StoriesReader().blocks(path)}
    assert list(splits) == ["train", "val"]


DAMAGES = {
    "gzip": ("t.txt.gz", lambda: gzip.compress(b"x" * 99)[:-9], "not a whole .gz file"),
    "gzip of another kind": ("t.txt.gz", lambda: b"plain", "not a whole .gz file"),
    "zstd": ("t.txt.zst", lambda: packed_noise()[:-3], "not a whole .zst file"),
    "zstd of another kind": ("t.txt.zst", lambda: b"plain", "not a whole .zst file"),
    "no UTF-8": ("t.txt", lambda: b"ab\xffcd", "found byte 0xff at offset 2; convert the file to UTF-8"),
    "no JSON": (
        "t.jsonl",
        lambda: b'{"text": "a"}\n{"text"\n',
        "line 2 after byte 0: expected a JSON object, found b'{\"text\"'",
    ),
    "no text": ("t.jsonl", lambda: b'{"body": "a"}', 'line 1 after byte 0: expected an object with text in "text"'),
    "no object": ("t.jsonl", lambda: b"[1]", "expected an object"),
    "parquet": ("t.parquet", lambda: b"PAR1 and more", "not a whole parquet file"),
}


def packed_noise():
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as file:
        file.write(bytes(random.Random(0).randbytes(500)))
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(("name", "content", "message"), DAMAGES.values(), ids=DAMAGES)
def test_damaged_files(name, content, message, tmp_path):
    path = tmp_path / name
    path.write_bytes(content())
    with pytest.raises(Error) as error:
        documents(reader_for(path), path)
    assert str(error.value).startswith(f"{path}: ") and message in str(error.value)


def test_parquet_without_the_column(tmp_path):
    path = tmp_path / "t.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"body": ["a"], "n": [1]}), path)
    with pytest.raises(Error, match="expected a column 'text', found body, n; name one with --field"):
        documents(ParquetReader(), path)
    assert documents(ParquetReader("body"), path) == ["a"]


def test_packed_files_of_several_parts(tmp_path):
    """As `cat a.gz b.gz` makes them."""
    for suffix in (".gz", ".zst"):
        one, two = (pack(tmp_path / name, content, suffix) for name, content in (("1", b"one "), ("2", b"two")))
        path = tmp_path / f"t.txt{suffix}"
        path.write_bytes(one.read_bytes() + two.read_bytes())
        assert documents(TextReader(), path) == ["one two"]
