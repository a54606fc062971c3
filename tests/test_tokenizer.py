"""llm/text/tokenizer.mojo: tokenizer files that Python wrote, text from bytes as Python decodes it, and wrong files."""

import struct

import numpy as np
import pytest

from llm_mojo import formats


@pytest.fixture(scope="session")
def program(mojo_program):
    return mojo_program("tests/programs/files.mojo")


TOKENS = [bytes([i]) for i in range(256)] + [b"\xe2\x82", b"x" * 255, " ünï".encode(), b"<|endoftext|>"]


def listing(tokens, eot):
    lines = [f"{len(tokens)} {eot}", *("".join(f"{byte} " for byte in token) for token in tokens)]
    for wrong in (-1, len(tokens)):
        lines.append(
            f"tokenizer: expected a token from 0 to {len(tokens) - 1}, got {wrong}; use the tokenizer file that was"
            " made with the model's data"
        )
    return lines


@pytest.mark.parametrize(("tokens", "eot"), [(TOKENS, 259), (TOKENS, 0), ([b"a"], None), ([b"a", b"bc"], None)])
def test_tokens_that_python_wrote(tokens, eot, program, tmp_path):
    formats.write_tokenizer(tmp_path / "tokenizer.bin", tokens, eot)
    output = program.output("tokenizer", tmp_path / "tokenizer.bin")
    assert output.splitlines() == listing(tokens, -1 if eot is None else eot)


def test_version_1_has_gpt2_s_end_of_text(program, tmp_path):
    path = tmp_path / "tokenizer.bin"
    formats.write_tokenizer(path, [b"a"] * 50257, None)
    set_header(path, 1, 1)
    assert program.output("tokenizer", path).startswith("50257 50256\n")
    formats.write_tokenizer(path, [b"a"] * 50256, None)
    set_header(path, 1, 1)
    assert "expected an end-of-text token below 50256, found 50256" in program.error("tokenizer", path)


def set_header(path, index, value):
    with open(path, "r+b") as file:
        file.seek(4 * index)
        file.write(struct.pack("<i", value))


def set_byte(path, position, value):
    with open(path, "r+b") as file:
        file.seek(1024 + position)
        file.write(bytes([value]))


DAMAGES = {
    "missing": (lambda path: path.unlink(), "cannot open"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "found a folder"),
    "empty": (lambda path: path.write_bytes(b""), "header of 1024 bytes, found 0 bytes"),
    "another kind": (lambda path: set_header(path, 0, 20240520), "found a token shard"),
    "wrong version": (lambda path: set_header(path, 1, 3), "expected version 2 or 1"),
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "expected 260 tokens in"),
    "cut off at a token": (lambda path: path.write_bytes(path.read_bytes()[:-14]), "found 259 in"),
    "too long": (lambda path: path.write_bytes(path.read_bytes() + b"\1a"), "expected 260 tokens in"),
    "an empty token": (lambda path: set_byte(path, 200, 0), "found 100 in 200"),
    "a wrong length": (lambda path: set_byte(path, 200, 255), "the file is damaged"),
    "no tokens": (lambda path: set_header(path, 2, 0), "found 0 tokens"),
    "negative count": (lambda path: set_header(path, 2, -7), "found -7 tokens"),
    "vast count": (lambda path: set_header(path, 2, 2**31 - 1), "found 2147483647 tokens"),
    "end of text beyond": (lambda path: set_header(path, 3, 260), "expected an end-of-text token below 260"),
    "end of text below": (lambda path: set_header(path, 3, -2), "found -2"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_what_is_wrong_is_said(damage, message, program, tmp_path):
    path = tmp_path / "tokenizer.bin"
    formats.write_tokenizer(path, TOKENS, 259)
    damage(path)
    error = program.error("tokenizer", path)
    assert f"tokenizer: {path}: " in error or f"tokenizer: cannot open {path}" in error
    assert message in error


def visible(text):
    """Leaves out control characters but tab and newlines, as TextStream does."""
    return "".join(c for c in text if c in "\t\n\r" or not (c < " " or "\x7f" <= c < "\xa0"))


def stream(program, tmp_path, data, size):
    (tmp_path / "bytes").write_bytes(data)
    return program.run("stream", tmp_path / "bytes", size, encoding=None).stdout


@pytest.mark.parametrize("size", [1, 2, 3, 5, 10**6])
def test_characters_come_out_whole(size, program, tmp_path):
    text = "".join(map(chr, [*range(0x300), *range(0x7F0, 0x810), *range(0xD7F0, 0xD800), *range(0xE000, 0xE010)]))
    text += "".join(map(chr, [*range(0xFFF0, 0x10010), 0x1F600, *range(0x10FFF0, 0x110000)]))
    assert stream(program, tmp_path, text.encode(), size).decode() == visible(text)


@pytest.mark.parametrize("seed", range(4))
def test_other_bytes_are_replaced_as_python_does(seed, program, tmp_path):
    random = np.random.default_rng(seed)
    interesting = [0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC1, 0xC2, 0xDF, 0xE0, 0xE1, 0xEC, 0xED, 0xEE]
    interesting += [0xEF, 0xF0, 0xF1, 0xF3, 0xF4, 0xF5, 0xFF]
    data = bytes(random.choice(interesting, size=20_000).tolist() + random.integers(256, size=20_000).tolist())
    assert stream(program, tmp_path, data, 1 + seed).decode() == visible(data.decode(errors="replace"))


@pytest.mark.parametrize("data", [b"\xe2", b"a\xf0\x9f\x98", b"", b"\xe2\x82\xac"])
def test_the_end(data, program, tmp_path):
    assert stream(program, tmp_path, data, 1).decode() == data.decode(errors="replace")
