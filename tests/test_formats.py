"""The files shared with Mojo and llm.c: byte for byte, damaged ones refused, whole or not there."""

import os
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch

from llm_mojo import files, formats
from llm_mojo.formats import FormatError, ModelConfig, checkpoint

CONFIG = ModelConfig(max_seq_len=8, vocab_size=130, num_layers=2, num_heads=3, channels=12)
GPT2 = ModelConfig(max_seq_len=1024, vocab_size=50257, num_layers=12, num_heads=12, channels=768)


def random_tensors(config, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape, "f4") for name, shape in formats.parameter_shapes(config).items()}


def header_of(path):
    return struct.unpack("<256i", path.read_bytes()[:1024])


def patch(path, index, value):
    raw = bytearray(path.read_bytes())
    struct.pack_into("<i", raw, 4 * index, value)
    path.write_bytes(raw)


def test_sizes_of_gpt2_are_those_of_llm_c():
    assert (formats.pad_vocab(50257), formats.pad_vocab(128), formats.pad_vocab(1)) == (50304, 128, 128)
    assert formats.HEADER_BYTES + 4 * formats.num_parameters(GPT2) == 497_904_640
    assert formats.HEADER_BYTES + 2 * formats.num_parameters(GPT2) == 248_952_832
    debug_values = 4 * 64 * (2 + 50257) + 1 + formats.num_parameters(GPT2)
    assert formats.HEADER_BYTES + 4 * debug_values == 549_369_860


def test_checkpoint_is_header_then_tensors_in_order(tmp_path):
    path, tensors = tmp_path / "m.bin", random_tensors(CONFIG)
    formats.write_checkpoint(path, CONFIG, tensors)
    assert header_of(path) == (20240326, 3, 8, 130, 2, 3, 12, 256) + (0,) * 248
    order = "wte wpe ln1w ln1b qkvw qkvb attprojw attprojb ln2w ln2b fcw fcb fcprojw fcprojb lnfw lnfb".split()
    assert path.read_bytes()[1024:] == b"".join(tensors[name].tobytes() for name in order)
    config, read = formats.read_checkpoint(path)
    assert config == CONFIG
    assert list(read) == order
    for name in order:
        assert isinstance(read[name], np.memmap)
        np.testing.assert_array_equal(read[name], tensors[name])


def test_bfloat16_checkpoint_rounds_as_pytorch_does(tmp_path):
    path, tensors = tmp_path / "m.bin", random_tensors(CONFIG)
    formats.write_checkpoint(path, CONFIG, tensors, "bfloat16")
    assert header_of(path)[:2] == (20240326, 5)
    assert path.stat().st_size == 1024 + 2 * formats.num_parameters(CONFIG)
    _, read = formats.read_checkpoint(path)
    for name, values in tensors.items():
        assert read[name].dtype == np.float32
        np.testing.assert_array_equal(read[name], torch.from_numpy(values).bfloat16().float().numpy())


def test_bfloat16_of_special_values():
    bits = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32)
    zeros_infinities_nans = [0, 1, 0x80000000, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 0xFFFFFFFF]
    ties_and_overflow = [0x3F808000, 0x3F818000, 0x7F7FFFFF]
    special = np.array(zeros_infinities_nans + ties_and_overflow, dtype=np.uint32)
    values = np.concatenate([bits, special]).view(np.float32)
    ours = formats.bfloat16_to_float32(formats.float32_to_bfloat16(values))
    np.testing.assert_array_equal(ours, torch.from_numpy(values.copy()).bfloat16().float().numpy())


def test_checkpoint_in_blocks_equals_checkpoint_at_once(tmp_path, monkeypatch):
    tensors = random_tensors(CONFIG)
    formats.write_checkpoint(tmp_path / "a.bin", CONFIG, tensors)
    monkeypatch.setattr(checkpoint, "BLOCK_VALUES", 30)
    formats.write_checkpoint_blocks(tmp_path / "b.bin", CONFIG, lambda name: np.array_split(tensors[name], 2))
    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "b.bin").read_bytes()


@pytest.mark.parametrize(
    "index, value, message",
    [
        (0, 7, "unknown magic number 7"),
        (0, 20240520, "found a token shard"),
        (1, 1, "expected version 3 or 5 .* found version 1"),
        (2, 9, "cut off"),
        (3, 0, "vocab_size=0"),
        (3, 257, "padded_vocab_size=256 is less"),
        (4, -1, "num_layers=-1"),
        (4, 2**31 - 1, "cut off"),
        (5, 5, "not a multiple of num_heads=5"),
    ],
)
def test_damaged_checkpoint_header(tmp_path, index, value, message):
    path = tmp_path / "m.bin"
    formats.write_checkpoint(path, CONFIG, random_tensors(CONFIG))
    patch(path, index, value)
    with pytest.raises(FormatError, match=message) as error:
        formats.read_checkpoint(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "length, message",
    [(0, "found 0 bytes"), (1000, "found 1000 bytes"), (2000, "cut off"), (-1, "cut off"), (1, "too long")],
)
def test_checkpoint_of_wrong_length(tmp_path, length, message):
    path = tmp_path / "m.bin"
    formats.write_checkpoint(path, CONFIG, random_tensors(CONFIG))
    raw = path.read_bytes()
    path.write_bytes(raw + b"x" if length == 1 else raw[:length])
    with pytest.raises(FormatError, match=message):
        formats.read_checkpoint(path)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(FormatError, match="No such file"):
        formats.read_checkpoint(tmp_path / "none.bin")
    with pytest.raises(FormatError, match="Is a directory"):
        formats.read_tokens(tmp_path)


def test_checkpoint_refuses_wrong_tensors(tmp_path):
    path, tensors = tmp_path / "m.bin", random_tensors(CONFIG)
    with pytest.raises(FormatError, match="wpe of shape"):
        formats.write_checkpoint(path, CONFIG, tensors | {"wpe": tensors["wpe"][:-1]})
    del tensors["lnfb"]
    with pytest.raises(FormatError, match="lnfb is missing"):
        formats.write_checkpoint(path, CONFIG, tensors)
    with pytest.raises(FormatError, match="expected dtype float32 or bfloat16"):
        formats.write_checkpoint(path, CONFIG, random_tensors(CONFIG), "float64")
    with pytest.raises(FormatError, match="values in wte"):
        formats.write_checkpoint_blocks(path, CONFIG, lambda name: [np.zeros((1, 12))])
    assert list(tmp_path.iterdir()) == []


def test_debug_state(tmp_path):
    path, rng = tmp_path / "d.bin", np.random.default_rng(1)
    x, y = rng.integers(130, size=(2, 2, 3), dtype=np.int32)
    logits, grads = rng.standard_normal((2, 3, 130), "f4"), random_tensors(CONFIG, 2)
    formats.write_debug_state(path, x, y, logits, 1.25, grads, CONFIG)
    assert header_of(path) == (20240327, 2, 2, 3) + (0,) * 252
    parts = [x, y, logits, np.float32(1.25), *grads.values()]
    assert path.read_bytes()[1024:] == b"".join(part.tobytes() for part in parts)
    state = formats.read_debug_state(path, CONFIG)
    assert state.loss == 1.25
    for found, expected in [
        (state.x, x),
        (state.y, y),
        (state.logits, logits),
        *zip(state.grads.values(), grads.values()),
    ]:
        np.testing.assert_array_equal(found, expected)


def test_debug_state_of_another_model(tmp_path):
    path = tmp_path / "d.bin"
    tokens = np.zeros((1, 1), np.int32)
    formats.write_debug_state(path, tokens, tokens, np.zeros((1, 1, 130)), 0.0, random_tensors(CONFIG), CONFIG)
    with pytest.raises(FormatError, match="expected .* bytes .*vocab_size=129"):
        formats.read_debug_state(path, ModelConfig(8, 129, 2, 3, 12))
    with pytest.raises(FormatError, match="logits of shape"):
        formats.write_debug_state(path, tokens, tokens, np.zeros((1, 1, 256)), 0.0, random_tensors(CONFIG), CONFIG)


def test_tokens(tmp_path):
    path = tmp_path / "t.bin"
    formats.write_tokens(path, np.array([1, 2, 65535], dtype=np.uint32))
    assert header_of(path)[:4] == (20240520, 1, 3, 0)
    assert path.read_bytes()[1024:] == struct.pack("<3H", 1, 2, 65535)
    tokens = formats.read_tokens(path)
    assert tokens.dtype == np.uint16 and tokens.tolist() == [1, 2, 65535]


def test_no_tokens(tmp_path):
    formats.write_tokens(tmp_path / "t.bin", [])
    assert formats.read_tokens(tmp_path / "t.bin").tolist() == []


def test_tokens_of_llama_3(tmp_path):
    path = tmp_path / "t.bin"
    expected = struct.pack("<256i", 20240801, 7, 2, *[0] * 253) + struct.pack("<2I", 128000, 5)
    path.write_bytes(expected)
    assert formats.read_tokens(path).tolist() == [128000, 5]
    formats.write_tokens(path, [128000, 5], formats.token_dtype(128256))
    assert path.read_bytes() == expected
    assert [formats.token_dtype(size) for size in (50257, 65536, 65537)] == ["<u2", "<u2", "<u4"]


def test_tokens_of_nanogpt_and_build_nanogpt(tmp_path):
    ids = np.arange(5, 305, dtype=np.uint16)
    ids.tofile(tmp_path / "train.bin")
    np.save(tmp_path / "edufineweb_train_000001.npy", ids)
    np.save(tmp_path / "large.npy", ids.astype(np.uint32))
    for path in tmp_path.iterdir():
        assert formats.read_tokens(path).tolist() == ids.tolist()
    (tmp_path / "train.bin").write_bytes(b"x" * 7)
    with pytest.raises(FormatError, match="llm.c's header, or nanoGPT's uint16 ids without one, found 7 bytes"):
        formats.read_tokens(tmp_path / "train.bin")
    np.save(tmp_path / "large.npy", ids.astype(np.float32))
    with pytest.raises(FormatError, match="expected one row of uint16 or uint32, found float32"):
        formats.read_tokens(tmp_path / "large.npy")
    (tmp_path / "large.npy").write_bytes(b"\x93NUMPY\x01\x00")
    with pytest.raises(FormatError, match="not a whole .npy file"):
        formats.read_tokens(tmp_path / "large.npy")


@pytest.mark.parametrize("tokens", [[65536], [-1], np.array([70000], dtype=np.uint32)])
def test_token_out_of_range(tmp_path, tokens):
    with pytest.raises(FormatError, match="ids from 0 to 65535"):
        formats.write_tokens(tmp_path / "t.bin", tokens)
    assert list(tmp_path.iterdir()) == []


def test_damaged_tokens(tmp_path):
    path = tmp_path / "t.bin"
    formats.write_tokens(path, range(100))
    patch(path, 2, 101)
    with pytest.raises(FormatError, match="expected 1,226 bytes .101 tokens.*found 1,224"):
        formats.read_tokens(path)
    patch(path, 2, -5)
    with pytest.raises(FormatError, match="found -5"):
        formats.read_tokens(path)


def test_tokenizer(tmp_path):
    path = tmp_path / "k.bin"
    formats.write_tokenizer(path, [b"a", b"bc", b"x" * 255], 1)
    assert header_of(path)[:5] == (20240328, 2, 3, 1, 0)
    assert path.read_bytes()[1024:] == b"\x01a\x02bc\xff" + b"x" * 255
    assert formats.read_tokenizer(path) == ([b"a", b"bc", b"x" * 255], 1)
    formats.write_tokenizer(path, [b"a"], None)
    assert header_of(path)[3] == -1
    assert formats.read_tokenizer(path) == ([b"a"], None)


def test_tokenizer_refuses(tmp_path):
    path = tmp_path / "k.bin"
    for tokens, eot, message in [
        ([b""], None, "0 bytes"),
        ([b"x" * 256], None, "256 bytes"),
        ([b"a"], 1, "end of text is 1"),
    ]:
        with pytest.raises(FormatError, match=message):
            formats.write_tokenizer(path, tokens, eot)
    formats.write_tokenizer(path, [b"ab", b"cd"], 0)
    raw = path.read_bytes()
    for damaged in (raw[:-1], raw + b"x", raw[:-4], raw[:1024], raw[:1024] + b"\x00" * 6):
        path.write_bytes(damaged)
        with pytest.raises(FormatError, match="damaged"):
            formats.read_tokenizer(path)


def test_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "f"
    path.write_text("old")
    with pytest.raises(RuntimeError):
        with files.atomic_file(path) as file:
            file.write(b"half")
            raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_killed_write_leaves_the_old_file_and_is_tidied_up(tmp_path):
    path = tmp_path / "f"
    path.write_text("old")
    script = f"""
import os, signal
from llm_mojo import files, formats
with files.atomic_file({str(path)!r}) as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", script], env=environment).returncode == -9
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2
    with files.atomic_file(path) as file:
        file.write(b"new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


EXAMPLES = [
    formats.Choice([5, 6, 7], [[1], [2, 3], [4], [9, 9, 9]], 1),
    formats.Choice([65534], [[0], [0], [0], [0]], 3),
]


def test_hellaswag_is_llm_cs_stream(tmp_path):
    path = tmp_path / "h.bin"
    assert formats.write_hellaswag(path, iter(EXAMPLES)) == 2
    assert header_of(path) == (20240522, 1, 2, 40) + (0,) * 252
    first = [65535, 40, 0, 1, 4, 3, 5, 6, 7, 1, 1, 2, 2, 3, 1, 4, 3, 9, 9, 9]
    second = [65535, 30, 1, 3, 4, 1, 65534, 1, 0, 1, 0, 1, 0, 1, 0]
    assert path.read_bytes()[1024:] == struct.pack(f"<{len(first + second)}H", *first, *second)
    assert formats.read_hellaswag(path) == EXAMPLES


@pytest.mark.parametrize(
    "example, message",
    [
        (formats.Choice([], [[1]] * 4, 0), "expected one or more ids from 0 to 65534"),
        (formats.Choice([1], [[1], [1], [65535], [1]], 0), "expected one or more ids from 0 to 65534"),
        (formats.Choice([1], [[1]] * 3, 0), "expected 4 endings"),
        (formats.Choice([1], [[1]] * 4, 4), "expected 4 endings"),
        (formats.Choice([1] * 32768, [[1]] * 4, 0), "expected at most 65,535 bytes"),
    ],
)
def test_hellaswag_refuses_what_the_file_cannot_hold(tmp_path, example, message):
    with pytest.raises(FormatError, match=message):
        formats.write_hellaswag(tmp_path / "h.bin", [*EXAMPLES, example])
    assert not list(tmp_path.iterdir())


def test_damaged_hellaswag_is_refused(tmp_path):
    path = tmp_path / "h.bin"
    formats.write_hellaswag(path, EXAMPLES)
    raw = path.read_bytes()
    for at in [1024, 1026, 1028, 1030, 1032, 1034, 1042]:  # the five numbers, the first two lengths
        damaged = bytearray(raw)
        struct.pack_into("<H", damaged, at, 77)
        path.write_bytes(damaged)
        with pytest.raises(FormatError, match="example 0"):
            formats.read_hellaswag(path)
    for damaged in (raw[:-1], raw[:-2], raw[:-30], raw + b"\0\0", raw + b"\0"):
        path.write_bytes(damaged)
        with pytest.raises(FormatError, match="the file is|example 1"):
            formats.read_hellaswag(path)
