"""train_gpt2_basic.mojo against the PyTorch reference: losses on the same batches in llm.c's order, samples, errors."""

import re

import numpy as np
import pytest
import torch

from llm_mojo import formats, reference
from mojo_programs import ROOT
from small_model import ONE_HEAD, SMALL, losses, make_files, shuffled_batches


@pytest.fixture(scope="session")
def program(mojo_program):
    return mojo_program("train_gpt2_basic.mojo")


@pytest.fixture
def files(tmp_path):
    """A model, three shards of different sizes, validation data and a tokenizer, all for `SMALL`."""
    make_files(tmp_path, SMALL)
    return tmp_path


def run(program, folder, *options, status=0):
    """Runs in the folder on the files of `make_files`, unless other options say otherwise."""
    own = ["-e", "model.bin", "-i", "train_*.bin", "-j", "val_0.bin", "--tokenizer", "tokenizer.bin", "-b", 3, "-t", 17]
    if status:
        return program.error(*own, *options, status=status, cwd=folder)
    return program.output(*own, *options, cwd=folder)


@pytest.mark.parametrize(("config", "B", "T"), [(SMALL, 3, 17), (ONE_HEAD, 1, 5)])
def test_losses_equal_pytorch(program, tmp_path, config, B, T):
    make_files(tmp_path, config)
    optimizer = dict(lr=0.002, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
    output = run(program, tmp_path, "-b", B, "-t", T, "-x", 20, "-l", 0.002, "-c", 0.1, "-v", 20, "-m", 2, "-s", 0)

    trainer = reference.Trainer(config, formats.read_checkpoint(tmp_path / "model.bin")[1], torch.float64)
    tokens = formats.read_tokens(tmp_path / "val_0.bin").astype(np.int32)

    def validate():
        batches = [tokens[i * B * T :][: B * T + 1] for i in range(2)]
        return np.mean([trainer.backward(x[:-1].reshape(B, T), x[1:].reshape(B, T))[1] for x in batches])

    expected_val = [validate()]
    expected = []
    batches = shuffled_batches(sorted(tmp_path.glob("train_*.bin")), B, T)
    for _ in range(20):
        expected.append(trainer.backward(*next(batches))[1])
        trainer.update(**optimizer)
    expected_val.append(validate())

    assert losses("train", output) == pytest.approx(expected, rel=2e-6)
    assert losses("val", output) == pytest.approx(expected_val, rel=2e-6)
    assert expected_val[1] < expected_val[0] - 0.01


def test_samples_are_drawn_from_the_model(program, files):
    output = run(program, files, "-x", 0, "-v", 0)
    assert "generating" not in output
    output = run(program, files, "-x", 2, "-l", 0, "-s", 1, "-g", 12)
    samples = [[int(token) for token in text.split()] for text in re.findall(r"---\n(.*)\n---", output)]

    trainer = reference.Trainer(SMALL, formats.read_checkpoint(files / "model.bin")[1], torch.float64)
    state = 1337
    for sample in samples:
        assert len(sample) == 11
        tokens = [SMALL.vocab_size - 1]
        for token in sample:
            state ^= state >> 12
            state = (state ^ state << 25) % 2**64
            state ^= state >> 27
            coin = ((state * 0x2545F4914F6CDD1D % 2**64) >> 40) / 2**24
            logits, _ = reference.forward(trainer.params, SMALL, torch.tensor([tokens]))
            cdf = logits[0, -1].softmax(0).cumsum(0)
            assert token == int((cdf <= coin).sum())
            tokens.append(token)
    assert len(samples) == 2 and samples[0] != samples[1]


def test_samples_are_printed_as_text(program, files):
    pieces = [b"\x07", "\u00e9".encode(), b"\n", b"\xc3", b"word"]
    formats.write_tokenizer(files / "tokenizer.bin", [pieces[i % 5] for i in range(130)], 129)
    output = run(program, files, "-x", 2, "-s", 1)
    assert "\u00e9" in output and "word" in output and "<130>" not in output
    assert "\x07" not in output and "\ufffd" not in output


def damage(path, offset, value):
    data = bytearray(path.read_bytes())
    data[offset : offset + 4] = np.int32(value).tobytes()
    path.write_bytes(data)


def truncate(path, size):
    path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "model.bin").unlink(), r"model\.bin: no such file.*python -m llm_mojo weights gpt2"),
        (lambda f: truncate(f / "model.bin", 1000), r"model\.bin: expected a header of 1024 bytes, found.* 1000"),
        (lambda f: truncate(f / "model.bin", 2000), r"model\.bin: expected 169216 bytes.* found 2000"),
        (lambda f: damage(f / "model.bin", 0, 1), r"model\.bin: expected magic number 20240326.* found 1,"),
        (lambda f: damage(f / "model.bin", 4, 5), r"model\.bin: expected .*version 3, found .* 5"),
        (lambda f: damage(f / "model.bin", 20, 5), r"model\.bin: no GPT-2 has .*NH=5, C=36"),
        (lambda f: (f / "train_1.bin").write_bytes(b""), r"train_1\.bin: expected a header"),
        (lambda f: truncate(f / "train_1.bin", 1100), r"train_1\.bin: expected 1288 bytes.* found 1100"),
        (lambda f: damage(f / "train_1.bin", 4, 7), r"train_1\.bin: expected .*version 1, found .* 7"),
        (lambda f: formats.write_tokens(f / "train_1.bin", [1] * 51), r"train_1\.bin: .* takes 52 tokens, found 51"),
        (
            lambda f: formats.write_tokens(f / "val_0.bin", [1] * 9 + [131] * 200),
            r"val_0.*token 131 at position 9.* 131",
        ),
        (lambda f: (f / "val_0.bin").unlink(), r"val_0\.bin: no such file.*prepro_tinyshakespeare\.py"),
        (lambda f: (f / "tokenizer.bin").unlink(), r"tokenizer\.bin: no such file.*prepro_tinyshakespeare\.py"),
        (lambda f: truncate(f / "tokenizer.bin", 1100), r"tokenizer\.bin: expected 131 tokens, found the end"),
        (lambda f: damage(f / "tokenizer.bin", 12, 131), r"tokenizer\.bin: its end of text is token 131.* has 131"),
    ],
)
def test_says_what_is_wrong_with_a_file(program, files, change, message):
    change(files)
    assert re.search(message, run(program, files, status=1))


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["-t", 21], 1, "T=21: model.bin takes at least one sequence of 1 to 20 tokens"),
        (["-b", 0], 1, "B=0"),
        (["-b", 10**9], 1, "takes 17000000001 tokens"),
        (["-i", "none_*.bin"], 1, "none_*.bin: no such file"),
        (["-b", "x"], 2, "option -b: expected a number such as 4, found x"),
        (["-x", "1.5"], 2, "option -x: expected a number such as 40, found 1.5"),
        (["-q", "1"], 2, "option -q: unknown; --help"),
        (["--seq-len"], 2, "option --seq-len: a value is missing"),
    ],
)
def test_says_what_is_wrong_with_an_option(program, files, options, status, message):
    assert message in run(program, files, *options, status=status)


def test_help_lists_the_options(program, files):
    assert "--seq-len 64" in run(program, files, "--help")


def test_imports_only_the_standard_library():
    imports = re.findall(r"^\s*(?:from|import)\s+(\S+)", (ROOT / "train_gpt2_basic.mojo").read_text(), re.M)
    assert imports and all(module.split(".")[0] == "std" for module in imports)
