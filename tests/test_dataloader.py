"""llm/data/loader.mojo: llm.c's order by numpy's mt19937, shards that Python wrote, what it says about wrong ones."""

import hashlib
import os
import struct

import numpy as np
import pytest

from llm_mojo import formats
from llm_mojo.__main__ import main

V = 50257
NEVER = -1


@pytest.fixture(scope="session")
def program(mojo_program):
    return mojo_program("tests/programs/files.mojo")


@pytest.fixture
def shards(tmp_path):
    """Four shards; in byte order of their names, `s_10` comes before `s_2`."""
    random = np.random.default_rng(0)
    for name, size in {"s_0": 701, "s_2": 900, "s_10": 513, "s_a": 1100}.items():
        formats.write_tokens(tmp_path / f"{name}.bin", random.integers(V, size=size))
    return tmp_path


class Referee:
    """llm.c's loader, after its source: one generator for the order of the shards and of the samples in each."""

    def __init__(self, folder, B, T, shuffle, rank, processes):
        self.paths = sorted(folder.glob("s_*.bin"), key=os.fsencode)
        self.B, self.T, self.shuffle, self.rank, self.processes = B, T, shuffle, rank, processes
        self.random = np.random.RandomState(42 + rank)
        self.shards = list(range(len(self.paths)))

    def permute(self, items):
        if self.shuffle:
            for i in range(len(items) - 1, 0, -1):
                j = int(self.random.randint(2**32, dtype=np.uint32)) % (i + 1)
                items[i], items[j] = items[j], items[i]

    def epoch(self):
        """Yields (shard, sample, inputs, targets): the first two count places in this epoch's order."""
        size = self.B * self.T
        self.permute(self.shards)
        for place, shard in enumerate(self.shards):
            tokens = formats.read_tokens(self.paths[shard]).tolist()
            samples = list(range((len(tokens) - 1) // (size * self.processes)))
            self.permute(samples)
            for i, sample in enumerate(samples):
                start = (sample * self.processes + self.rank) * size
                yield place, i + 1, tokens[start : start + size], tokens[start + 1 : start + size + 1]

    def batches(self, count, reset):
        """Lists (shard, sample, epoch, inputs, targets); batch `reset` is the first of a new start."""
        found, epoch = [], 0
        while len(found) < count:
            for shard, sample, inputs, targets in self.epoch():
                found.append((shard, sample, epoch, inputs, targets))
                if len(found) == count or len(found) == reset:
                    break
            epoch = 0 if len(found) == reset else epoch + 1
        return found


@pytest.mark.parametrize("shuffle", [0, 1])
@pytest.mark.parametrize(
    ("B", "T", "rank", "processes", "count", "reset"),
    [
        (4, 16, 0, 1, 150, NEVER),
        (3, 7, 0, 1, 400, 77),
        (1, 1, 0, 1, 3300, NEVER),
        (2, 16, 1, 3, 80, 33),
        (8, 64, 0, 1, 20, NEVER),
    ],
)
def test_the_batches_are_llm_c_s(B, T, rank, processes, count, reset, shuffle, program, shards):
    output = program.output("batches", shards / "s_*.bin", B, T, V, shuffle, rank, processes, count, reset).splitlines()
    referee = Referee(shards, B, T, shuffle, rank, processes)
    sizes = [formats.read_tokens(path).size for path in referee.paths]
    assert output[0].split() == [str(sum(sizes)), str(sum((size - 1) // (B * T * processes) for size in sizes))]
    found = [[int(word) for word in line.split()] for line in output[1:]]
    expected = [[shard, sample, epoch, *x, *y] for shard, sample, epoch, x, y in referee.batches(count, reset)]
    assert found == expected


def scramble(x):
    x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) % 2**64
    x = ((x ^ x >> 27) * 0x94D049BB133111EB) % 2**64
    return x ^ x >> 31


@pytest.mark.parametrize(
    ("B", "T", "rank", "processes", "reset"), [(4, 16, 0, 1, NEVER), (3, 7, 1, 2, 50), (1, 1, 0, 1, 9)]
)
def test_random_windows(B, T, rank, processes, reset, program, shards):
    """Each sequence by itself, from all places of all shards alike, drawn by splitmix64."""
    paths = sorted(shards.glob("s_*.bin"), key=os.fsencode)
    tokens = [formats.read_tokens(path).tolist() for path in paths]
    places = [(shard, start) for shard, ids in enumerate(tokens) for start in range(len(ids) - T)]
    assert scramble(0x9E3779B97F4A7C15 * 3 % 2**64) == 0x06C45D188009454F  # the third number of the authors' seed 0
    lines = program.output("batches", shards / "s_*.bin", B, T, V, 2, rank, processes, 70, reset).splitlines()
    counts = [int(word) for word in lines[0].split()]
    drawn = []
    for i, line in enumerate(lines[1:]):
        batch = i if reset == NEVER or i < reset else i - reset
        shard, sample, epoch, *ids = (int(word) for word in line.split())
        expected = []
        for b in range(B):
            number = (batch * processes + rank) * B + b
            bits = scramble((scramble(42) + number * 0x9E3779B97F4A7C15) % 2**64)
            expected.append(places[(bits >> 11) * len(places) >> 53])
        x = [token for s, start in expected for token in tokens[s][start : start + T]]
        y = [token for s, start in expected for token in tokens[s][start + 1 : start + T + 1]]
        assert (sample, epoch, ids) == (batch + 1, batch // counts[1], x + y)
        assert shard == expected[-1][0]
        drawn += expected
    assert {shard for shard, _ in drawn} == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("llama.bin", lambda path, ids: formats.write_tokens(path, ids, "<u4")),
        ("train.bin", lambda path, ids: ids.astype(np.uint16).tofile(path)),
        ("edufineweb_train_000001.npy", lambda path, ids: np.save(path, ids.astype(np.uint16))),
        ("large.npy", lambda path, ids: np.save(path, ids.astype(np.uint32))),
        ("version2.npy", lambda path, ids: np.lib.format.write_array(path.open("wb"), ids.astype("<u2"), (2, 0))),
    ],
)
def test_files_of_other_kinds(name, write, program, tmp_path):
    """llm.c's for large vocabularies, nanoGPT's, build-nanogpt's."""
    path = tmp_path / name
    for size in (41, 1000):
        ids = np.random.default_rng(size).integers(50000, size=size)
        write(path, ids)
        output = program.output("batches", path, 2, 7, 50000, 0, 0, 1, 2, NEVER).splitlines()
        assert output[0] == f"{size} {(size - 1) // 14}"
        for i, line in enumerate(output[1:]):
            assert [int(word) for word in line.split()[3:]] == [
                *ids[14 * i : 14 * i + 14],
                *ids[14 * i + 1 : 14 * i + 15],
            ]


def test_ids_above_65535(program, tmp_path):
    path = tmp_path / "t.bin"
    formats.write_tokens(path, [128000, 65536, 2**31 - 1, 2**32 - 1, 5], "<u4")
    output = program.output("batches", path, 1, 1, 2**31, 0, 0, 1, 2, NEVER).splitlines()
    assert [line.split()[3:] for line in output[1:]] == [["128000", "65536"], ["65536", str(2**31 - 1)]]
    assert f"found {2**32 - 1} at position 3;" in batch(program, path, V=2**31, count=3, B=1, T=1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros(100, np.float32), "expected one row of uint16 or uint32, found {'descr': '<f4'"),
        (np.zeros((10, 10), np.uint16), "expected one row of"),
        (b"\x93NUMPY\x01\x00\xff\xff" + b" " * 100, "the header of the .npy file is cut off"),
        (b"\x93NUMPY\x01\x00\x76\x00{'descr': '<u2', 'shape': (x,), }" + b" " * 100, "expected one row of numbers"),
    ],
)
def test_npy_files_of_another_kind(content, message, program, tmp_path):
    path = tmp_path / "t.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)
    assert message in batch(program, path)
    np.save(path, np.zeros(100, np.uint16))
    path.write_bytes(path.read_bytes()[:-1])
    assert "the file is cut off" in batch(program, path)


def batch(program, pattern, V=V, count=1, B=4, T=16):
    return program.error("batches", pattern, B, T, V, 0, 0, 1, count, NEVER)


@pytest.mark.parametrize("name", ["s[1].bin", "s?.bin", "plain.bin"])
def test_a_name_that_exists_stands_for_itself(name, program, tmp_path):
    formats.write_tokens(tmp_path / name, np.arange(5))
    formats.write_tokens(tmp_path / "s1.bin", np.arange(6))
    output = program.output("batches", tmp_path / name, 1, 4, V, 0, 0, 1, 1, NEVER)
    assert output == "5 1\n0 1 0 0 1 2 3 1 2 3 4\n"


def set_header(path, index, value):
    with open(path, "r+b") as file:
        file.seek(4 * index)
        file.write(struct.pack("<i", value))


DAMAGES = {
    "empty": (lambda path: path.write_bytes(b""), ["header of 1024 bytes, found 0 bytes"]),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), ["expected a file, found a folder"]),
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:-1]), ["2425 bytes", "cut off"]),
    "too long": (lambda path: path.write_bytes(path.read_bytes() + b"\0\0"), ["2428 bytes", "too long"]),
    "another kind": (lambda path: set_header(path, 0, 20240326), ["a token shard", "found a model checkpoint"]),
    "Llama 3's": (lambda path: set_header(path, 0, 20240801), ["expected version 7 of a token shard of Llama 3"]),
    "an odd size": (lambda path: path.write_bytes(b"\1" * 701), ["expected a token shard", "found 701 bytes"]),
    "text": (
        lambda path: path.write_text("a text\n" * 300),
        ["expected tokens, found text", "python -m llm_mojo prepare"],
    ),
    "wrong version": (lambda path: set_header(path, 1, 9), ["expected version 1", "found version 9"]),
    "negative count": (lambda path: set_header(path, 2, -1), ["expected a number of tokens", "found -1"]),
    "vast count": (lambda path: set_header(path, 2, 2**31 - 1), ["2147483647 tokens", "cut off"]),
    "only a header": (lambda path: formats.write_tokens(path, []), ["at least 65 tokens", "found 0"]),
}


@pytest.mark.parametrize(("damage", "messages"), DAMAGES.values(), ids=DAMAGES)
def test_what_is_wrong_with_a_shard_is_said_at_the_start(damage, messages, program, shards):
    path = shards / "s_a.bin"
    formats.write_tokens(path, np.zeros(701))
    damage(path)
    error = batch(program, shards / "s_*.bin", count=0)
    for message in ["data: ", str(path), *messages]:
        assert message in error


@pytest.mark.parametrize("pattern", ["none_*.bin", "none.bin", "none/s_*.bin", ""])
def test_no_shards(pattern, program, shards):
    error = batch(program, f"{shards}/{pattern}" if pattern else "")
    assert f"data: no file matches {shards if pattern else ''}" in error and "python -m llm_mojo prepare" in error


def test_too_few_tokens(program, tmp_path):
    path = tmp_path / "short.bin"
    formats.write_tokens(path, np.zeros(64))
    error = batch(program, path)
    assert f"{path}: expected at least 65 tokens for one batch of B=4, T=16, found 64" in error
    formats.write_tokens(path, np.zeros(65))
    assert program.run("batches", path, 4, 16, V, 0, 0, 1, 3, NEVER).returncode == 0


@pytest.mark.parametrize("position", [0, 64, 70, 128])
def test_tokens_beyond_the_vocabulary(position, program, tmp_path):
    path = tmp_path / "tokens.bin"
    tokens = np.full(140, 99)
    tokens[position] = 100
    tokens[129:] = 60000
    formats.write_tokens(path, tokens)
    error = batch(program, path, V=100, count=2)
    assert f"{path}: expected tokens below 100" in error and f"found 100 at position {position};" in error


# ---------------------------------------------------------------------------------------------------------------------
# manifests


def test_sha256(program, tmp_path):
    path = tmp_path / "f"
    for size in (0, 1, 55, 56, 63, 64, 65, 119, 120, 1000, (1 << 20) - 1, 1 << 20, 2_500_000):
        path.write_bytes(np.random.default_rng(size).bytes(size))
        assert program.output("sha256", path).strip() == hashlib.sha256(path.read_bytes()).hexdigest()


def test_data_tokenizer_and_model_belong_together(program, tmp_path):
    (tmp_path / 'a "quoted", {odd} folder').mkdir()
    text = tmp_path / 'a "quoted", {odd} folder/t.txt'
    text.write_text("hello world")
    data = tmp_path / "data"
    command = ["prepare", str(text), "--out", str(data), "--name", "t"]
    assert main([*command, "--tokenizer", "char"]) == 0
    assert program.output("manifest", data / "*.bin", data / "tokenizer.bin", 8) == ""
    error = program.error("manifest", data / "*.bin", data / "tokenizer.bin", 9)
    assert (
        f"data and model do not agree: the data ({data}/manifest.json) was made with the tokenizer char of 8" in error
    )
    other = tmp_path / "other.bin"
    formats.write_tokenizer(other, [bytes([i]) for i in range(65, 73)], None)
    error = program.error("manifest", data / "*.bin", other, 8)
    assert (
        f"data and tokenizer do not agree: the data ({data}/manifest.json)" in error and f"{other} is another" in error
    )
    (data / "manifest.json").write_text('{"manifest": 1}')
    assert "manifest.json: not a manifest of prepared data" in program.error("manifest", data / "*.bin", other, 8)
    (data / "manifest.json").unlink()
    assert program.output("manifest", data / "*.bin", other, 9) == ""
