"""llm/model/checkpoints.mojo against llm_mojo.formats: the same bytes both ways, and what it says about wrong files."""

import os
import resource
import signal
import struct

import numpy as np
import pytest

from llm_mojo import formats

CONFIG = formats.ModelConfig(max_seq_len=7, vocab_size=131, num_layers=2, num_heads=3, channels=12)
MAXIMUM = 2**31 - 1
SIZES = ("max_seq_len", "vocab_size", "num_layers", "num_heads", "channels", "padded_vocab_size")


@pytest.fixture(scope="session")
def program(mojo_program):
    return mojo_program("tests/programs/files.mojo")


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "model.bin"
    formats.write_checkpoint(path, CONFIG, tensors(CONFIG))
    return path


def tensors(config):
    """Random bit patterns, so that NaN, infinities, denormals and both zeros are among the values."""
    random = np.random.default_rng(3)
    shapes = formats.parameter_shapes(config)
    return {name: random.integers(2**32, size=shape, dtype=np.uint32).view("<f4") for name, shape in shapes.items()}


def set_header(path, fields):
    with open(path, "r+b") as file:
        for index, value in fields.items():
            file.seek(4 * index)
            file.write(struct.pack("<i", value))


@pytest.mark.parametrize("padded_vocab_size", [256, 140])
def test_fp32_comes_back_byte_for_byte(padded_vocab_size, program, tmp_path):
    config = formats.ModelConfig(**(vars(CONFIG) | {"padded_vocab_size": padded_vocab_size}))
    formats.write_checkpoint(tmp_path / "in.bin", config, tensors(config))
    assert program.output("config", tmp_path / "in.bin").split() == [str(getattr(config, size)) for size in SIZES]
    program.output("checkpoint", tmp_path / "in.bin", tmp_path / "new folder" / "out.bin")
    assert (tmp_path / "new folder" / "out.bin").read_bytes() == (tmp_path / "in.bin").read_bytes()


def test_bf16_is_widened(program, tmp_path):
    random = np.random.default_rng(4)
    values = {name: random.normal(size=shape).astype("f4") for name, shape in formats.parameter_shapes(CONFIG).items()}
    formats.write_checkpoint(tmp_path / "in.bin", CONFIG, values, dtype="bfloat16")
    program.output("checkpoint", tmp_path / "in.bin", tmp_path / "out.bin")
    config, written = formats.read_checkpoint(tmp_path / "out.bin")
    assert config == CONFIG
    for name, expected in formats.read_checkpoint(tmp_path / "in.bin")[1].items():
        np.testing.assert_array_equal(written[name], expected)


def damage(path, how):
    if how == "missing":
        path.unlink()
    elif how == "a folder":
        path.unlink()
        path.mkdir()
    elif how == "a pipe":
        path.unlink()
        os.mkfifo(path)
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "half a header":
        path.write_bytes(path.read_bytes()[:512])
    elif how == "cut off":
        path.write_bytes(path.read_bytes()[:-1])
    elif how == "only a header":
        path.write_bytes(path.read_bytes()[:1024])
    elif how == "too long":
        path.write_bytes(path.read_bytes() + b"\0")
    else:
        set_header(path, how)


DAMAGES = {
    "missing": ("missing", ["cannot open", "No such file", "check the path"]),
    "a folder": ("a folder", ["expected a file, found a folder"]),
    "a pipe": ("a pipe", ["expected an ordinary file"]),
    "empty": ("empty", ["header of 1024 bytes, found 0 bytes"]),
    "half a header": ("half a header", ["header of 1024 bytes, found 512 bytes"]),
    "cut off": ("cut off", ["expected 28816 bytes", "found 28815 bytes", "cut off"]),
    "only a header": ("only a header", ["found 1024 bytes", "cut off"]),
    "too long": ("too long", ["found 28817 bytes", "too long"]),
    "another kind": ({0: formats.TOKENS_MAGIC}, ["expected a model checkpoint", "found a token shard"]),
    "unknown magic": ({0: -5}, ["expected a model checkpoint", "found something unknown (-5)"]),
    "wrong version": ({1: 2}, ["expected version 3 or 5", "found version 2"]),
    "other precision": ({1: 5}, ["expected 14920 bytes", "too long"]),
    "another size": ({4: 3}, ["expected", "cut off"]),
    "no layers": ({4: 0}, ["number of layers from 1 to", "found 0"]),
    "negative width": ({6: -12}, ["number of channels from 1 to", "found -12"]),
    "heads do not divide": ({5: 5}, ["12 channels do not divide into 5 heads"]),
    "padding too small": ({7: 130}, ["padded vocabulary 130 is smaller than the vocabulary 131"]),
    "vast vocabulary": ({3: MAXIMUM, 7: MAXIMUM}, ["vocabulary from 1 to", f"found {MAXIMUM}"]),
    "vast everything": (dict.fromkeys(range(2, 8), MAXIMUM), [f"found {MAXIMUM} in the header"]),
    "largest allowed": ({2: 1 << 24, 3: 1 << 24, 4: 1 << 14, 5: 1, 6: 1 << 17, 7: 1 << 24}, ["cut off"]),
}


@pytest.mark.parametrize(("how", "messages"), DAMAGES.values(), ids=DAMAGES)
def test_what_is_wrong_is_said(how, messages, program, checkpoint):
    damage(checkpoint, how)
    error = program.error("config", checkpoint)
    for message in ["read_checkpoint: ", str(checkpoint), *messages]:
        assert message in error


def test_a_full_disk_leaves_what_was_there(program, checkpoint, tmp_path):
    def no_room():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    (tmp_path / "out.bin").write_bytes(b"what was there")
    error = program.error("checkpoint", checkpoint, tmp_path / "out.bin", preexec_fn=no_room, restore_signals=False)
    assert "write_checkpoint: cannot write" in error and "unchanged" in error
    assert (tmp_path / "out.bin").read_bytes() == b"what was there"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.bin", "out.bin"]


def test_what_a_killed_writer_left_is_replaced(program, checkpoint, tmp_path):
    (tmp_path / "out.bin.0123abcd.llm-mojo.tmp").write_bytes(b"half" * 100_000)
    program.output("checkpoint", checkpoint, tmp_path / "out.bin")
    assert (tmp_path / "out.bin").read_bytes() == checkpoint.read_bytes()
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(
    ("out", "message"),
    [("folder", "found a folder"), ("model.bin/out.bin", "expected a folder, found a file")],
)
def test_where_it_cannot_write(out, message, program, checkpoint, tmp_path):
    (tmp_path / "folder").mkdir()
    error = program.error("checkpoint", checkpoint, tmp_path / out)
    assert "write_checkpoint: " in error and message in error
    assert list((tmp_path / "folder").iterdir()) == []
