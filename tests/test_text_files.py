"""Files of text as they come: every format is read or refused by name, whatever is in them; nothing small takes much."""

import bz2
import gzip
import io
import json
import lzma
import os
import random
import resource
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import tiktoken

from llm_mojo import Error, job, readers
from llm_mojo.__main__ import main
from llm_mojo.readers import CsvReader, JsonLinesReader, ParquetReader, TextReader, reader_for
from mojo_programs import ROOT, TIMEOUT
from prepared import EOT, error_of, run, shards
from read_documents import documents, joined, starts_and_rests

TEXTS = ["one, two", 'a "quoted"\nline', "東 é 🙂", "last"]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def tokens(folder="data/x", stem="x"):
    return sum(shards(folder, stem), [])


def expected(texts):
    return [token for text in texts for token in (EOT, *text.encode())]


def json_lines(texts):
    return "".join(json.dumps({"text": text, "timestamp": "2019-04-25"}) + "\n" for text in texts).encode()


def table(texts, delimiter):
    file = io.StringIO()
    import csv

    csv.writer(file, delimiter=delimiter).writerows([("id", "text"), *enumerate(texts)])
    return file.getvalue().encode()


def tar(texts):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.txt"))
    return file.getvalue()


def zipped(content):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.txt", content)
    return file.getvalue()


# ---------------------------------------------------------------------------------------------------------------------
# formats


@pytest.mark.parametrize("pack", [("", bytes), (".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)])
@pytest.mark.parametrize(
    "name, content",
    [
        ("x.json", json_lines(TEXTS)),
        ("x.jsonl", b"\xef\xbb\xbf" + json_lines(TEXTS)),
        ("x.csv", table(TEXTS, ",")),
        ("x.csv", b"\xef\xbb\xbf" + table(TEXTS, ",")),
        ("x.TSV", table(TEXTS, "\t")),
    ],
)
def test_fields(name, content, pack):
    suffix, packed = pack
    Path(name + suffix).write_bytes(packed(content))
    run(name + suffix, "--field", "text", "--val-fraction", "0.5")
    assert tokens() == expected(TEXTS)


@pytest.mark.parametrize("pack", [(".bz2", bz2.compress), (".xz", lzma.compress), (".gz", gzip.compress)])
def test_packed_text(pack, capsys):
    suffix, packed = pack
    text = b"some text\n" * 50
    Path(f"x.txt{suffix}").write_bytes(packed(text))
    run(f"x.txt{suffix}")
    assert tokens() == [EOT, *text]
    Path(f"x.txt{suffix}").write_bytes(packed(text)[:-12])
    assert f"not a whole {suffix} file" in error_of(capsys, f"x.txt{suffix}")
    Path("y.txt").write_bytes(packed(text))
    assert f"name it *{suffix}, or unpack it" in error_of(capsys, "y.txt")


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("x.zip", zipped("text"), ".zip is packed in a way that is not read here (.gz, .bz2, .xz, .zst are)"),
        ("x.tar", tar(TEXTS), ".tar is packed"),
        ("x.tar.gz", gzip.compress(tar(TEXTS)), ".tar is packed"),
        ("x.tgz", gzip.compress(tar(TEXTS)), ".tgz is packed"),
        ("x.txt.br", b"text", ".br is packed"),
        ("x.txt", zipped("text"), "expected text, found zip"),
        ("x.docx", zipped("text"), "expected text, found zip"),
        ("x.txt", tar(TEXTS), "expected text, found a tar archive"),
        ("x.txt.gz", gzip.compress(tar(TEXTS)), "expected text, found a tar archive"),
        ("x.txt.gz", gzip.compress(gzip.compress(b"text")), "expected text, found gzip"),
        ("x.pdf", b"%PDF-1.7\n", "expected text, found PDF"),
        ("x.jsonl", gzip.compress(b"{}"), "expected text, found gzip"),
        ("x.csv", zipped("text"), "expected text, found zip"),
        ("x.json", b'[{"text": "a"}]', "an object a line"),
        ("x.json", b'{\n "text": "a"\n}\n', "write an object a line"),
        ("x.json", b"[" * 100_000, "write an object a line"),
        ("x.csv", b"id,body\n1,2\n", "expected a column 'text', found id, body; name one with --field"),
        ("x.csv", b"id,text\n1\n", "row 1: expected 2 columns, found 1"),
        ("x.csv", b'id,text\n1,"open\n', "after row 0: not a table in UTF-8 (unexpected end of data)"),
        ("x.csv", b'id,text\n1,a\n2,"b" c\n', "after row 1: not a table in UTF-8"),
        ("x.csv", b"id,text\n1,\xff\n", "not a table in UTF-8"),
        ("x.csv", b"\n", "expected a column 'text', found ; name one"),
    ],
)
def test_what_is_refused(name, content, message, capsys):
    Path(name).write_bytes(content)
    found = error_of(capsys, name)
    assert name in found and message in found


def test_fields_and_separators_where_there_are_none(capsys):
    Path("t.txt").write_text("text " * 50)
    Path("t.jsonl").write_bytes(json_lines(TEXTS))
    assert "--field body: expected JSON lines, .csv, .tsv or .parquet" in error_of(capsys, "t.txt", "--field", "body")
    assert "--separator: expected plain text" in error_of(capsys, "t.jsonl", "--separator", "x")
    for flag in ("--field", "--separator"):
        assert "pydocs has its own layout" in error_of(capsys, "pydocs", flag, "x")
        assert (
            main(
                [
                    "tokenizer",
                    "t.txt" if flag == "--field" else "t.jsonl",
                    flag,
                    "x",
                    "--vocab-size",
                    "257",
                    "--out",
                    "v",
                ]
            )
            == 1
        )
    run("t.txt", "t.jsonl", "--field", "text", "--separator", "x")


@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_tables_from_every_place(delimiter, monkeypatch):
    monkeypatch.setattr(readers, "BLOCK_BYTES", 30)
    texts = [text for text in [*TEXTS, *(f"row {i}\r\n" * (i % 5) for i in range(50))] if text]
    Path("t.csv").write_bytes(table(texts, delimiter))
    reader = CsvReader("text", delimiter)
    assert documents(reader, "t.csv") == texts
    for pieces in starts_and_rests(reader, "t.csv"):
        assert joined(pieces) == texts


# ---------------------------------------------------------------------------------------------------------------------
# documents


def test_one_rule_for_documents_without_text():
    """Empty or null: none. In every format, and the ids are the same."""
    texts = ["one", "", None, "two", ""]
    Path("a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    Path("b.csv").write_bytes(table([text or "" for text in texts], ","))
    Path("d.txt").write_text("|".join(text or "" for text in texts))
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), "c.parquet")
    for name in ("a.jsonl", "b.csv", "c.parquet", "d.txt"):
        run(
            name,
            "--out",
            name[0],
            "--name",
            "x",
            "--val-fraction",
            "0.4",
            *(["--separator", "|"] if name == "d.txt" else []),
        )
        assert tokens(name[0]) == expected(["one", "two"])
        assert json.loads(Path(name[0], "manifest.json").read_text())["documents"] == 2


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_separators_of_lines_that_end_otherwise(end):
    paragraphs = [f"paragraph {i}{end}of two lines" for i in range(60)]
    Path("x.txt").write_text((end + end).join(paragraphs), newline="")
    run("x.txt", "--separator", r"\n\n", "--val-fraction", "0.5")
    assert tokens() == expected(paragraphs)
    run("x.txt", "--separator", r"\n\n", "--out", "clean", "--clean", "strip")
    assert tokens("clean") == expected(paragraphs)


@pytest.mark.parametrize("tokenizer", ["gpt2", "byte", "char", "strip"])
def test_halves_of_characters(tokenizer, capsys, monkeypatch):
    """JSON can spell them, UTF-8 cannot: U+FFFD, as tiktoken has it."""
    spelled = [r"a \ud800 b", r"\udc00\ud800", r"\ud83d\ude00 whole", "plain"]
    Path("x.jsonl").write_text("".join(f'{{"text": "{text}"}}\n' for text in spelled))
    texts = ["a \ufffd b", "\ufffd\ufffd", "😀 whole", "plain"]
    if tokenizer == "gpt2":
        if not os.environ.get("LLM_MOJO_CACHE"):
            pytest.skip("GPT-2's vocabulary is not here")
        from llm_mojo.tokenize import gpt2_tokenizer

        engine: tiktoken.Encoding = gpt2_tokenizer()._engine
        wanted = [
            id for text in map(json.loads, (f'"{each}"' for each in spelled)) for id in (50256, *engine.encode(text))
        ]
    elif tokenizer == "char":
        characters = sorted(set("".join(texts)) | {"\n"})
        wanted = None
    else:
        wanted = expected(texts)
    flags = ["--clean", "strip"] if tokenizer == "strip" else ["--tokenizer", tokenizer]
    run("x.jsonl", "--val-fraction", "0.5", *flags)
    assert "note: 2 documents had halves of characters" in capsys.readouterr().out
    if wanted is None:
        wanted = [characters.index(character) for character in "".join(texts)]
        characters_made = "".join(sorted(set("".join(texts))))
        wanted = [characters_made.index(character) for character in "".join(texts)]
    assert tokens() == wanted
    assert json.loads(Path("data/x/manifest.json").read_text())["replaced"] == 2
    assert main(["tokenizer", "x.jsonl", "--vocab-size", "260", "--out", "v"]) == 0


def test_nothing_is_left(capsys):
    Path("x.txt").write_text("a short text")
    message = error_of(capsys, "x.txt", "--clean", "min-chars:100000")
    assert "nothing is left: of 1 documents 1 were dropped" in message
    Path("x.jsonl").write_text('{"text": null}\n{"text": ""}\n')
    assert "nothing is left: of 0 documents 0 were dropped" in error_of(capsys, "x.jsonl")


def test_links_that_lead_in_a_circle(capsys):
    os.symlink("b.txt", "a.txt")
    os.symlink("a.txt", "b.txt")
    assert "a.txt: no such file" in error_of(capsys, "a.txt")
    Path("folder").mkdir()
    os.symlink("../folder", "folder/again")
    os.symlink("loop.txt", "folder/loop.txt")
    assert "folder: expected text files" in error_of(capsys, "folder")
    Path("folder/x.txt").write_text("some text " * 9)
    run("folder")
    assert tokens("data/folder", "folder") == expected(["some text " * 9])


# ---------------------------------------------------------------------------------------------------------------------
# parquet


def parquet(values, kind=None, name="text", **options):
    options = {"row_group_size": 3} | options
    pyarrow.parquet.write_table(pyarrow.table({name: pyarrow.array(values, kind)}), "x.parquet", **options)


@pytest.mark.parametrize(
    "kind",
    [
        pyarrow.binary(),
        pyarrow.large_binary(),
        pyarrow.string(),
        pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
    ],
    ids=str,
)
def test_parquet_of_text_and_bytes(kind):
    values = [text.encode() if "binary" in str(kind) else text for text in TEXTS] + [None]
    parquet(values, kind)
    assert documents(ParquetReader(), "x.parquet") == TEXTS
    for row in range(len(TEXTS)):
        assert documents(ParquetReader(), "x.parquet", row) == TEXTS[row:]


@pytest.mark.parametrize(
    "values, kind, message",
    [
        ([["a"]], None, "expected text in the column 'text', found list<"),
        ([{"a": "b"}], None, "expected text in the column 'text', found struct<"),
        ([1, 2], None, "expected text in the column 'text', found int64"),
        ([None, None], None, "expected text in the column 'text', found null"),
        ([None, None], pyarrow.string(), "nothing is left"),
        ([], pyarrow.string(), "nothing is left"),
    ],
)
def test_parquet_of_something_else(values, kind, message, capsys):
    parquet(values, kind)
    assert message in error_of(capsys, "x.parquet")


def test_parquet_that_is_not_utf8(capsys):
    raw = pyarrow.array([b"good", b"bad \xff"], pyarrow.binary())
    text = pyarrow.Array.from_buffers(pyarrow.string(), 2, raw.buffers())
    pyarrow.parquet.write_table(pyarrow.table({"text": text}), "x.parquet")
    message = error_of(capsys, "x.parquet", "--tokenizer", "char")
    assert "x.parquet: after row 0: expected UTF-8 text, found byte 0xff" in message
    run("x.parquet")
    assert tokens() == [EOT, *b"good", EOT, *b"bad \xff"]


def limited(code, memory=1_200_000_000):
    """Runs Python with so much address space above what its start takes; returns (status, what it said)."""
    limit = f"""
import resource
import numpy, pyarrow.parquet, llm_mojo.readers
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + {memory}, used + {memory}))
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "pysrc"), "ARROW_DEFAULT_MEMORY_POOL": "system"}
    words = [sys.executable, "-c", limit + code]
    result = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=TIMEOUT)
    return result.returncode, result.stdout + result.stderr


PREPARE = "from llm_mojo.__main__ import main; raise SystemExit(main(['prepare', {!r}]))"


def test_a_table_that_unfolds(capsys):
    """A value of 8 MB for 1,000 rows: 8 GB from 2 KB; and one of 300 MB."""
    repeated = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 1000, "int32"), ["x" * 8_000_000])
    once = {"use_dictionary": False, "write_statistics": False}
    repeats = {"dictionary_pagesize_limit": 1 << 30, "store_schema": False, "row_group_size": 1000}
    for values, options in ((repeated, repeats), (["x" * 300_000_000], once)):
        parquet(values, compression="zstd", **options)
        assert Path("x.parquet").stat().st_size < 30_000
        status, said = limited(PREPARE.format("x.parquet"))
        assert status == 1 and "expected at most 1,000 bytes of text from each byte" in said, said


@pytest.mark.parametrize("repeats", [True, False])
def test_a_table_whose_values_repeat(repeats, monkeypatch):
    """However it is read, it is the same."""
    monkeypatch.setattr(readers, "LARGE_DICTIONARY", 1 if repeats else 1 << 22)
    texts = [*TEXTS, "", None] * 70
    parquet(texts, row_group_size=100)
    assert documents(ParquetReader(), "x.parquet") == [text for text in texts if text]
    assert documents(ParquetReader(), "x.parquet", 250) == [text for text in texts[250:] if text]


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_a_packed_file_that_unfolds(suffix, monkeypatch, capsys):
    monkeypatch.setattr(readers, "UNPACKED_BYTES", 1 << 22)
    monkeypatch.setattr(readers, "UNPACKED_RATIO", 500)
    content = bytes(1 << 24)
    if suffix == ".zst":
        with pyarrow.CompressedOutputStream(f"x.txt{suffix}", "zstd") as file:
            file.write(content)
    else:
        Path(f"x.txt{suffix}").write_bytes({".gz": gzip, ".bz2": bz2, ".xz": lzma}[suffix].compress(content))
    assert "no text packs so small" in error_of(capsys, f"x.txt{suffix}")


# ---------------------------------------------------------------------------------------------------------------------
# files that change, disks that fill


@pytest.mark.parametrize("tokenizer", ["byte", "char"])
@pytest.mark.parametrize("change", ["grow", "shrink", "replace"])
def test_a_file_that_changes_while_it_is_read(change, tokenizer, monkeypatch, capsys):
    text = Path("x.txt")
    text.write_text("some text " * 100)
    take = job.Job._take

    def changing(self, result):
        take(self, result)
        if change == "replace":
            Path("other").write_text("more text " * 100)
            os.replace("other", text)
        else:
            os.truncate(text, 1100 if change == "grow" else 900)

    with monkeypatch.context() as patched:
        patched.setattr(job.Job, "_take", changing)
        message = error_of(capsys, "x.txt", "--tokenizer", tokenizer)
    assert "x.txt: the file changed while it was read; run the command again" in message
    assert not list(Path("data/x").glob("manifest.json"))
    text.write_text("new text " * 100)
    run("x.txt")
    assert "going on" not in capsys.readouterr().out and tokens() == [EOT, *b"new text " * 100]


@pytest.mark.parametrize("clean", [[], ["--clean", "unique"]])
def test_a_full_disk(clean):
    """The file is named, sqlite's too; when there is room, the same command ends as if nothing had been."""
    rng = random.Random(0)
    Path("x.jsonl").write_bytes(json_lines([rng.randbytes(20).hex() for _ in range(20_000)]))
    command = ["prepare", "x.jsonl", "--out", "full", *clean]
    code = f"from llm_mojo.__main__ import main; raise SystemExit(main({command}))"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "pysrc")}
    limit = 600_000

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    words = [sys.executable, "-c", f"import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); {code}"]
    result = subprocess.run(
        words, capture_output=True, text=True, env=environment, preexec_fn=small_files, timeout=TIMEOUT
    )
    assert result.returncode == 1 and "Traceback" not in result.stderr, result.stderr
    assert "error: full/" in result.stderr
    run("x.jsonl", "--out", "full", *clean)
    run("x.jsonl", "--out", "whole", *clean)
    assert tokens("full") == tokens("whole")


# ---------------------------------------------------------------------------------------------------------------------
# anything


def damaged(rng, content):
    """The content with some bytes changed, cut out or put in."""
    content = bytearray(content)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(content) + 1)
        action = rng.randrange(4)
        if action == 0:
            content[at : at + rng.randint(1, 30)] = b""
        elif action == 1:
            content[at:at] = rng.randbytes(rng.randint(1, 8))
        elif action == 2:
            content[at:at] = rng.choice([b'"', b"{", b"[", b"\\ud800", b"\x00", b"\xff", b"\n", b"1e999", b"null"])
        elif at < len(content):
            content[at] = rng.randrange(256)
    return bytes(content)


def check_ends_well(reader, path):
    try:
        documents(reader, path)
    except Error as error:
        assert str(error)


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.parquet", "x.txt.gz", "x.txt.xz", "x.txt"])
def test_damaged_files_are_data_or_a_message(name):
    parquet(TEXTS * 5, compression="none")
    contents = {
        "x.jsonl": json_lines(TEXTS),
        "x.csv": table(TEXTS, ","),
        "x.parquet": Path("x.parquet").read_bytes(),
        "x.txt.gz": gzip.compress(b"text\n" * 20),
        "x.txt.xz": lzma.compress(b"text\n" * 20),
        "x.txt": "text\r\n\r\né".encode() * 20,
    }
    rng, path = random.Random(0), Path(name)
    reader = TextReader("\n\n") if name == "x.txt" else reader_for(path)
    for _ in range(150):
        path.write_bytes(damaged(rng, contents[name]))
        check_ends_well(reader, path)
    assert isinstance(reader_for("x.json"), JsonLinesReader)
