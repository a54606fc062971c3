"""tokenize_text.mojo: the shards that `python -m llm_mojo prepare` makes, whatever the threads and the cuts."""

import json
import subprocess
import sys

import numpy as np
import pytest

from llm_mojo import formats
from mojo_programs import ENVIRONMENT, ROOT, TIMEOUT, wait_for

TEXTS = {
    "a.txt": "First.\n\nSecond <|endoftext|> one.",
    "b.txt": "Ünïcödé, 日本語。\u3000中文\u2003a\u00a0b 😀  " * 20_000,
    "c.txt": "a" * 200_000 + "\n\n\t" * 90_000 + "'s 12 34'll " * 10_000,
    "d.txt": "\u3000" * 100_000 + "x\u3000y\u0085 \u2028z " * 10_000,
    "e.txt": " ",
}


@pytest.fixture(scope="session")
def program(mojo_program):
    return mojo_program("tokenize_text.mojo")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Texts, and what the Python side makes of them."""
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "texts").mkdir()
    for name, text in TEXTS.items():
        (folder / "texts" / name).write_text(text, encoding="utf-8", newline="")
    for tokenizer in ("gpt2", "byte"):
        prepare(folder, folder / tokenizer, tokenizer, "--name", "own")
    return folder


def prepare(folder, out, tokenizer, *flags):
    command = ["prepare", folder / "texts", "--out", out, "--tokenizer", tokenizer, *map(str, flags)]
    environment = ENVIRONMENT | {"PYTHONPATH": str(ROOT / "pysrc")}
    subprocess.run([sys.executable, "-m", "llm_mojo", *command], check=True, env=environment)


def tokenize(program, prepared, out, *flags, tokenizer="gpt2"):
    flags = [
        "-i",
        prepared / "texts" / "*.txt",
        "-o",
        out,
        "--tokenizer",
        prepared / tokenizer / "tokenizer.bin",
        *flags,
    ]
    return program.output(*flags)


def check_manifest(ours, theirs):
    ours, theirs = (json.loads((folder / "manifest.json").read_text()) for folder in (ours, theirs))
    assert all(ours[key] == theirs[key] for key in ("manifest", "documents", "outputs"))
    assert ours["inputs"] == [{key: each[key] for key in ("name", "bytes", "sha256")} for each in theirs["inputs"]]
    assert ours["tokenizer"] | {"name": ""} == theirs["tokenizer"] | {"name": ""}
    assert ours["tokenizer"]["name"] in ours["command"]


@pytest.mark.parametrize(("threads", "tokenizer"), [(1, "gpt2"), (2, "gpt2"), (7, "gpt2"), (2, "byte")])
def test_the_bytes_that_prepare_makes(threads, tokenizer, program, prepared, tmp_path):
    output = tokenize(program, prepared, tmp_path / "own", "--threads", threads, tokenizer=tokenizer)
    expected = {path.name: path.read_bytes() for path in (prepared / tokenizer).glob("*.bin")}
    assert {path.name: path.read_bytes() for path in (tmp_path / "own").glob("*.bin")} == expected
    check_manifest(tmp_path / "own", prepared / tokenizer)
    count = sum(len(formats.read_tokens(tmp_path / "own" / f"own_{split}.bin")) for split in ("train", "val"))
    assert f"5 files, {sum(len(text.encode()) for text in TEXTS.values()):,} bytes: {count:,} tokens" in output


@pytest.mark.parametrize("rest", ["any", "short"])
def test_shards_of_a_size(rest, program, prepared, tmp_path):
    """A rest that is too short for a shard of its own goes to the one before."""
    total = sum(len(formats.read_tokens(prepared / "gpt2" / f"own_{split}.bin")) for split in ("train", "val"))
    shard_tokens = 100_003 if rest == "any" else int(total * 0.75) // 2 - 100
    shape = ["--name", "own", "--shard-tokens", shard_tokens, "--val-fraction", "0.25"]
    prepare(prepared, tmp_path / "theirs", "gpt2", *shape)
    tokenize(program, prepared, tmp_path / "ours", *shape)
    expected = {path.name: path.read_bytes() for path in (tmp_path / "theirs").glob("*.bin")}
    assert {path.name: path.read_bytes() for path in (tmp_path / "ours").glob("*.bin")} == expected
    check_manifest(tmp_path / "ours", tmp_path / "theirs")
    assert rest == "any" or sum("train" in name for name in expected) == 2


def test_vocabularies_beyond_uint16(program, prepared, tmp_path):
    tokens = [bytes([value]) for value in range(256)]
    tokens += [b"\xff" + number.to_bytes(3, "big") for number in range(65_536 - 256)] + [b"ab", b"<|endoftext|>"]
    (tmp_path / "text").write_text("abcab" * 10)
    for count, dtype in ((65_536, np.uint16), (len(tokens), np.uint32)):
        formats.write_tokenizer(tmp_path / "tokenizer.bin", tokens[-count:] if count > 65_536 else tokens[:count], None)
        if count > 65_536:
            formats.write_tokenizer(tmp_path / "tokenizer.bin", tokens, count - 1)
        program.output("-i", tmp_path / "text", "-o", tmp_path / "out", "--tokenizer", tmp_path / "tokenizer.bin")
        ids = [np.array(formats.read_tokens(tmp_path / "out" / f"out_{split}.bin")) for split in ("train", "val")]
        assert ids[0].dtype == dtype
        text = list(b"abcab" * 10) if count == 65_536 else [65_537] + [65_536, ord("c"), 65_536] * 10
        assert np.concatenate(ids).tolist() == text


def characters(prepared, tmp_path):
    formats.write_tokenizer(tmp_path / "tokenizer.bin", [c.encode() for c in "abcdefgh \n"], None)
    return ["-o", tmp_path / "out", "--tokenizer", tmp_path / "tokenizer.bin"]


def test_an_unknown_character_is_named_with_its_file(program, prepared, tmp_path):
    flags = characters(prepared, tmp_path)
    (tmp_path / "good.txt").write_text("abc\n" * 50_000)
    (tmp_path / "wrong.txt").write_text("abc\n" * 50_000 + "abX" + "abc\n" * 50_000)
    error = program.error("-i", tmp_path / "*.txt", *flags)
    assert f"{tmp_path}/wrong.txt: tokenizer: character 'X' (U+0058) at position 200002 (line 50001)" in error
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]
    assert "wrote" in program.output("-i", tmp_path / "good.txt", *flags)


def test_what_is_wrong_is_said(program, prepared, tmp_path):
    flags = characters(prepared, tmp_path)
    (tmp_path / "empty.txt").touch()
    (tmp_path / "short.txt").write_text("abc")
    assert "no file matches" in program.error("-i", tmp_path / "*.md", *flags)
    assert "found nothing but empty files" in program.error("-i", tmp_path / "empty.txt", *flags)
    assert "found a folder" in program.error("-i", tmp_path, *flags)
    assert "too little text: expected 2 tokens or more" in program.error("-i", tmp_path / "*.txt", *flags)
    assert "cannot open nowhere" in program.error("-i", tmp_path / "*.txt", *flags, "--tokenizer", "nowhere")
    assert "expected --out" in program.error("-i", tmp_path / "short.txt", status=2)
    assert "expected --name" in program.error("-i", tmp_path / "short.txt", "-o", ".", status=2)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]


def test_shards_of_another_text_are_pointed_out(program, prepared, tmp_path):
    (tmp_path / "own_train_000099.bin").touch()
    (tmp_path / "manifest.json").write_text("of that text")
    output = tokenize(program, prepared, tmp_path, "--name", "own", "--force")
    assert f"note: {tmp_path}/own_train_000099.bin was there before" in output
    check_manifest(tmp_path, prepared / "gpt2")


@pytest.mark.parametrize("signal", [2, 15])
def test_a_signal_leaves_nothing(signal, program, prepared, tmp_path):
    """The text has no end, almost: one file under 3,000 names, 40 GB."""
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "0").write_bytes(TEXTS["b.txt"].encode() * 10)
    for i in range(1, 3000):
        (tmp_path / "texts" / str(i)).hardlink_to(tmp_path / "texts" / "0")
    flags = ["-i", tmp_path / "texts/*", "-o", tmp_path / "out", "--tokenizer", prepared / "gpt2" / "tokenizer.bin"]
    command = [program.path, *flags]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    wait_for(lambda: list(tmp_path.glob("out/*")) or process.poll() is not None)
    process.send_signal(signal)
    output = process.communicate(timeout=TIMEOUT)[0]
    assert process.returncode == 128 + signal and "nothing was written" in output
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]
