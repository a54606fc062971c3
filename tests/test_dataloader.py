"""llm/dataloader.mojo: llm.c's order by numpy's mt19937, shards that Python wrote, what it says about wrong ones."""

import os
import struct

import numpy as np
import pytest

from llm_mojo import formats

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
    output = program.output(
        "batches", shards / "s_*.bin", B, T, V, shuffle, rank, processes, count, reset
    ).splitlines()
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
    "Llama 3's": (lambda path: set_header(path, 0, 20240801), ["found a token shard of Llama 3"]),
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
