"""Everything that can be wrong with what the programs are given, in one list: what, how it comes about, what is said.

Each row runs a program in a folder of good files of which some have been spoilt. It must end with its status and its
message, without a crash, and leave every file as it was. More of the same, by file format, is in test_checkpoint.py,
test_dataloader.py, test_tokenizer.py and test_settings.py; what disks and signals do to a run is in test_signals.py,
and the basic trainer has a list of its own in test_basic.py.
"""

import fcntl
import json
import os
import re
import resource
import shutil
import struct

import numpy as np
import pytest
import torch

from llm_mojo import formats, reference
from llm_mojo.formats import read_checkpoint, write_checkpoint, write_tokenizer, write_tokens
from small_model import SMALL, make_files

NOBODY = 65534
TRAIN, TEST = "train_gpt2.mojo", "test_gpt2.mojo"
FLAGS = {
    TRAIN: ["-i", "train_*.bin", "-j", "val_0.bin", "-e", "model.bin", "-b", 3, "-t", 17, "-x", 4, "-s", 0],
    TEST: ["-e", "model.bin", "--debug-state", "model_debug_state.bin", "--losses", "model_losses.txt"],
}
RESUME = ["-o", "run", "-y", 1]
STATE = "run/state_00000002_00000.bin"
MOMENTS = 1024 + 8 * formats.num_parameters(SMALL)


# How things go wrong; each returns a function of the folder.


def cut(name, size):
    """Only the first bytes are there."""
    return lambda folder: os.truncate(folder / name, size)


def longer(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes() + b"\0")


def put(name, offset, value, kind="<i"):
    """Another value at this offset, from the end if it is negative."""

    def spoil(folder):
        with open(folder / name, "r+b") as file:
            file.seek(offset, os.SEEK_END if offset < 0 else os.SEEK_SET)
            file.write(struct.pack(kind, value))

    return spoil


def field(name, index, value):
    """Another value in the header."""
    return put(name, 4 * index, value)


def without(pattern):
    return lambda folder: [path.unlink() for path in folder.glob(pattern)]


def folder_instead(name):
    return lambda folder: ((folder / name).unlink(), (folder / name).mkdir())


def copied(name, to):
    return lambda folder: shutil.copy(folder / name, folder / to)


def text(name, content):
    return lambda folder: (folder / name).write_text(content)


def secret(name):
    """Only its owner may read it."""
    return lambda folder: (folder / name).chmod(0o600)


def tokens(name, ids):
    return lambda folder: write_tokens(folder / name, ids)


def tokenizer(size):
    return lambda folder: write_tokenizer(folder / "tokenizer.bin", [b"%d" % i for i in range(size)], None)


def sidecar(**changes):
    def spoil(folder):
        path = folder / "run/extra_00000002.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return spoil


def wider_model(name):
    """The checkpoint of a model with other sizes."""
    config = formats.ModelConfig(20, 131, 2, 3, 48)
    return lambda folder: write_checkpoint(folder / name, config, reference.init_tensors(config))


def more_positions(folder):
    """The same model with room for 21 tokens."""
    config, tensors = read_checkpoint(folder / "model.bin")
    config = formats.ModelConfig(**(vars(config) | {"max_seq_len": 21}))
    wpe = np.concatenate([tensors["wpe"], np.zeros((1, config.channels), "f4")])
    write_checkpoint(folder / "run/model_00000002.bin", config, dict(tensors) | {"wpe": wpe})


def in_use(folder):
    """Another run writes to the log, until this process lets go of it."""
    fcntl.flock(os.open(folder / "run/log.jsonl", os.O_RDONLY), fcntl.LOCK_EX)


def nothing(folder):
    pass


def debug_state_of_a_longer_context(folder):
    """As if wpe had 21 rows: the file is as long as one of this model could be, but T is beyond the model's context."""
    grads = {name: np.zeros(shape) for name, shape in formats.parameter_shapes(SMALL).items()}
    ids = np.zeros((1, 21), int)
    formats.write_debug_state(folder / "model_debug_state.bin", ids, ids, np.zeros((1, 21, 131)), 1, grads, SMALL)


# How a program is run where it is not run as usual.

ANOTHER_USER = {"user": NOBODY}
FULL_DISK = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))}

WRONG = {  # (program, status): what is wrong: (how, flags, what is said[, how it is run])
    (TRAIN, 1): {
        "no checkpoint": (without("model.bin"), [], r"model\.bin: No such file.*check the path"),
        "the checkpoint is a folder": (folder_instead("model.bin"), [], r"model\.bin: no checkpoint in this folder"),
        "the checkpoint is empty": (cut("model.bin", 0), [], r"header of 1024 bytes, found 0 bytes"),
        "half a header": (cut("model.bin", 1000), [], r"model\.bin: expected .* header of 1024 bytes, found 1000"),
        "a checkpoint cut off": (cut("model.bin", 2000), [], r"expected 169216 bytes.* found 2000.*cut off"),
        "a checkpoint too long": (longer("model.bin"), [], r"expected 169216 bytes.* found 169217.*too long"),
        "wrong magic number": (
            field("model.bin", 0, 1),
            [],
            r"expected a model checkpoint.* found something unknown \(1\)",
        ),
        "wrong version": (field("model.bin", 1, 4), [], r"expected version 3 or 5 .*found version 4"),
        "a token shard as checkpoint": (
            copied("val_0.bin", "model.bin"),
            [],
            r"a model checkpoint.*found a token shard",
        ),
        "a checkpoint without layers": (field("model.bin", 4, 0), [], r"number of layers from 1 .*found 0"),
        "a checkpoint of negative width": (field("model.bin", 6, -36), [], r"number of channels from 1 .*found -36"),
        "a checkpoint with 5 heads": (field("model.bin", 5, 5), [], r"36 channels do not divide into 5 heads"),
        "less padded than real words": (field("model.bin", 7, 130), [], r"padded vocabulary 130 is smaller"),
        "a checkpoint of vast size": (field("model.bin", 3, 2**31 - 1), [], r"vocabulary from 1 to .*found 2147483647"),
        "a checkpoint that is not ours": (secret("model.bin"), [], r"model\.bin: Permission denied", ANOTHER_USER),
        "no such published model": (nothing, ["-e", "gpt2-xl"], r"gpt2_1558M\.bin is not here; .*weights gpt2-xl"),
        "no such random model": (nothing, ["-e", "d7"], r"no model is called 'd7'; known are"),
        "no shards": (without("train*"), [], r"no file matches train_\*\.bin.*python -m llm_mojo prepare"),
        "no validation data": (without("val*"), [], r"no file matches val_0\.bin"),
        "an empty pattern": (nothing, ["-i", ""], r"data: no file matches ; check the name"),
        "a shard is a folder": (folder_instead("train_1.bin"), [], r"train_1\.bin: expected a file, found a folder"),
        "a shard without a header": (cut("train_1.bin", 99), [], r"train_1\.bin: .*header of 1024 bytes, found 99"),
        "a shard cut off": (cut("train_1.bin", 1100), [], r"train_1\.bin: expected 1288 bytes.* found 1100.*cut off"),
        "a shard too long": (longer("train_1.bin"), [], r"train_1\.bin: expected 1288 bytes.* found 1289.*too long"),
        "half a shard of Llama 3": (field("train_1.bin", 0, 20240801), [], r"version 7 of .*Llama 3, found version 1"),
        "a shard of another version": (field("train_1.bin", 1, 2), [], r"expected version 1 .*found version 2"),
        "a shard of -1 tokens": (field("train_1.bin", 2, -1), [], r"expected a number of tokens, found -1"),
        "a shard that is not ours": (secret("train_1.bin"), [], r"train_1\.bin: Permission denied", ANOTHER_USER),
        "too few tokens for a batch": (tokens("train_1.bin", [1] * 51), [], r"at least 52 tokens .*found 51"),
        "a token beyond the vocabulary": (
            tokens("train_0.bin", [1] * 60 + [131] + [1] * 100),
            ["--shuffle", 0],
            r"train_0\.bin: expected tokens below 131, the model's vocabulary, found 131 at position 60",
        ),
        "the tokenizer is missing": (nothing, ["--tokenizer", "none.bin"], r"none\.bin: No such file"),
        "the tokenizer is cut off": (cut("tokenizer.bin", 1100), [], r"expected a vocabulary that fits.*found 131"),
        "the tokenizer is a checkpoint": (copied("model.bin", "tokenizer.bin"), [], r"a tokenizer file.*a model check"),
        "another model's tokenizer": (
            tokenizer(130),
            [],
            r"the tokenizer tokenizer\.bin has 130 tokens, the model 131",
        ),
        "a HellaSwag file that is none": (nothing, ["-h", "val_0.bin"], r"val_0\.bin: .*found a token shard"),
        # resuming
        "no model in the checkpoint": (without("run/model*"), RESUME, r"model_00000002\.bin: No such file"),
        "no state in the checkpoint": (without(STATE), RESUME, r"state_00000002_00000\.bin: No such .*remove run/DONE"),
        "a state cut off": (
            cut(STATE, 9999),
            RESUME,
            r"state_00000002_00000\.bin: expected 8 bytes at 337408, found 0",
        ),
        "a state too long": (longer(STATE), RESUME, r"state_00000002_00000\.bin: .*too long"),
        "a state of another step": (field(STATE, 10, 3), RESUME, r"the state after 2 steps, found 3 steps"),
        "a state of two processes": (field(STATE, 2, 2), RESUME, r"a run of ours, found one of 2 processes of llm\.c"),
        "a state of another rank": (
            field(STATE, 3, 1),
            RESUME,
            r"expected part 0 of the 1 parts of a state, found part 1",
        ),
        "a state of version 2": (field(STATE, 1, 2), RESUME, r"expected version 1 .*found version 2"),
        "an order of too many shards": (put(STATE, MOMENTS, 2**40, "<q"), RESUME, r"found 1099511627776 shards"),
        "an order that has a shard twice": (put(STATE, MOMENTS + 8, 1), RESUME, r"shards, but the order has"),
        "a state that is none": (field(STATE, 0, 0), RESUME, r"a training state.*found something unknown"),
        "a generator that is none": (put(STATE, -4, 0), RESUME, r"expected llm\.c's random generator at byte"),
        "a place beyond the data": (put(STATE, 128, 99, "<q"), RESUME, r"samples in the current shard, but .* 99"),
        "a sidecar that is no JSON": (
            text("run/extra_00000002.json", "x"),
            RESUME,
            r"json: expected an object in braces",
        ),
        "a sidecar of another step": (sidecar(step=3), RESUME, r"expected step to be an integer from 2 to 2, found 3"),
        "a sidecar with words": (sidecar(loss_sum="much"), RESUME, r"expected loss_sum to be a number, found .much"),
        "the model of another run": (wider_model("run/model_00000002.bin"), RESUME, r"state_00000002.*bytes|moments"),
        "the model has grown": (more_positions, RESUME, r"state_00000002_00000\.bin: "),
        "another batch size": (
            nothing,
            [*RESUME, "-b", 2],
            r"samples in the current shard.*--batch-size and --seq-len",
        ),
        "another order": (nothing, [*RESUME, "--shuffle", 2], r"saved with --shuffle 1, this run has --shuffle 2"),
        # where results go
        "a run is there already": (nothing, ["-o", "run"], r"run holds a run, saved after step 2; go on with it"),
        "another run is writing there": (in_use, RESUME, r"log\.jsonl is in use by another run"),
        "the folder is a file": (nothing, ["-o", "model.bin"], r"model\.bin: expected a folder, found a file"),
        "the folder is not ours": (nothing, RESUME, r"cannot write run/log\.jsonl: Permission denied", ANOTHER_USER),
        "the disk is full": (nothing, RESUME, r"cannot write run/run\.toml: File too large", FULL_DISK),
        # sizes
        "a context beyond the model's": (
            nothing,
            ["-t", 21],
            r"T=21 but this model takes T from 1 to 20.*--seq-len 20",
        ),
        "heads that do not divide": (
            nothing,
            ["-e", "d12", "--n-embd", 10, "--n-head", 3],
            r"10 channels do not divide into 3 heads",
        ),
        "a vast model": (nothing, ["-e", "d12", "--n-layer", 10**9], r"layers must be at most 16384"),
        "a model beyond the memory": (
            nothing,
            ["-e", "d12", "--n-layer", 16384, "--n-embd", 131064, "--vocab-size", 131],
            r"memory: the run needs [\d,]+ MB, this machine, or its container, has [\d,]+ MB; use ",
        ),
        "more than all tokens in a batch": (
            nothing,
            ["-b", 2**31 - 1],
            r"expected at least 36507222000 tokens for one",
        ),
        "divergence": (nothing, ["-l", 1e30, "-x", 20], r"step \d+: the .* the model has diverged.*--learning-rate"),
    },
    (TRAIN, 2): {
        "an unknown flag": (
            nothing,
            ["--lerning-rate", 4],
            r"unknown flag --lerning-rate; did you mean --learning-rate\?",
        ),
        "an unknown letter": (nothing, ["-w", 4], r"unknown flag -w; did you mean"),
        "a flag without its value": (nothing, ["-x"], r"-x: expected a value \(-x --max-steps N\), got none"),
        "a value without its flag": (nothing, ["model.bin"], r"unexpected 'model\.bin': values follow their flag"),
        "no sequences": (nothing, ["-b", 0], r"--batch-size: expected an integer of at least 1, got '0'"),
        "negative steps": (nothing, ["-x", -2], r"--max-steps: expected an integer of at least -1, got '-2'"),
        "a word for a number": (nothing, ["-t", "x"], r"--seq-len: expected an integer of at least 1, got 'x'"),
        "a fraction for an integer": (nothing, ["-n", 1.5], r"--checkpoint-every: expected an integer .*got '1\.5'"),
        "a number beyond 32 bits": (nothing, ["-g", 2**31], r"--gen-len: expected an integer .*got '2147483648'"),
        "not a number": (nothing, ["-l", "nan"], r"--learning-rate: expected a number of at least 0\.0, got 'nan'"),
        "a beta of 1": (nothing, ["--beta1", 1], r"--beta1: expected a number from 0\.0 to 0\.99999, got '1'"),
        "a final fraction above 1": (nothing, ["-q", 1.5], r"--final-lr-fraction: expected a number from 0\.0 to 1\.0"),
        "sizes for a checkpoint": (nothing, ["--n-layer", 3], r"--n-layer: the checkpoint model\.bin has its own"),
        "a schedule that there is not": (
            nothing,
            ["-k", "cosin"],
            r"--schedule: expected cosine\|linear\|constant\|wsd",
        ),
        "an order that there is not": (
            nothing,
            ["--shuffle", 3],
            r"--shuffle: expected an integer from 0 to 2, got '3'",
        ),
        "half a batch": (nothing, ["-d", 100], r"a multiple of B\*T = 3\*17 = 51, got 100; the nearest are 51 and 102"),
        "validation on nothing": (nothing, ["-m", 0], r"--val-batches: expected -1 \(all\) or at least 1, got '0'"),
        "resuming nowhere": (nothing, ["-y", 1], r"--resume 1: expected --out, the folder of the run"),
        "a preset that there is not": (nothing, ["--preset", "none"], r"no preset none: neither the file none nor"),
        "a preset of another kind": (nothing, ["--preset", "model.bin"], r"model\.bin: expected a text in UTF-8"),
        "a preset with a wrong name": (text("p", "max-step = 1"), ["--preset", "p"], r"line 1: unknown name max-step"),
        "flags before files": (without("model.bin"), ["-u", "x"], r"--warmup: expected an integer"),
    },
    (TEST, 1): {
        "no checkpoint": (without("model.bin"), [], r"model\.bin: No such file"),
        "no debug state": (without("model_debug*"), [], r"model_debug_state\.bin: No such file"),
        "no losses": (without("model_losses.txt"), [], r"model_losses\.txt: No such file"),
        "a checkpoint cut off": (cut("model.bin", 5000), [], r"model\.bin: expected .* found 5000 bytes.*cut off"),
        "an empty debug state": (cut("model_debug_state.bin", 0), [], r"expected a debug state.*found 0 bytes"),
        "a debug state cut off": (cut("model_debug_state.bin", 9999), [], r"expected .*B=3, T=17.* found 9999 bytes"),
        "a debug state too long": (longer("model_debug_state.bin"), [], r"model_debug_state\.bin: .*too long"),
        "a debug state of -1 x -1": (
            lambda f: (field("model_debug_state.bin", 2, -1)(f), field("model_debug_state.bin", 3, -1)(f)),
            [],
            r"model_debug_state\.bin: expected .*B=-1, T=-1",
        ),
        "a checkpoint as debug state": (
            copied("model.bin", "model_debug_state.bin"),
            [],
            r"expected a debug state.*a model check",
        ),
        "a debug state as checkpoint": (
            copied("model_debug_state.bin", "model.bin"),
            [],
            r"expected a model check.*a debug state",
        ),
        "another model's debug state": (wider_model("model.bin"), [], r"state\.bin: expected .*a model like the"),
        "a context beyond the model's": (
            debug_state_of_a_longer_context,
            [],
            r"T=21 but this model takes T from 1 to 20",
        ),
        "a token beyond the vocabulary": (
            put("model_debug_state.bin", 1024, 131),
            [],
            r"token 131 at position 0 .*vocabulary of 131",
        ),
        "two losses": (text("model_losses.txt", "1\n2\n"), [], r"losses\.txt: expected 10 losses.* found 2"),
        "losses in words": (text("model_losses.txt", "one\n" * 10), [], r"expected a number.* found one"),
    },
    (TEST, 2): {
        "a word for a number": (nothing, ["--tolerance", "x"], r"--tolerance: expected a number"),
    },
}
ROWS = [
    pytest.param(program, status, *row[:3], row[3] if row[3:] else {}, id=f"{program.partition('_')[0]}: {what}")
    for (program, status), rows in WRONG.items()
    for what, row in rows.items()
]


@pytest.fixture(scope="module")
def good(mojo_program, tmp_path_factory):
    """Good files of all kinds, and a run of two steps."""
    folder = tmp_path_factory.mktemp("good")
    make_files(folder, SMALL)
    batch = reference.random_batch(SMALL, 3, 17, seed=3)
    tensors = read_checkpoint(folder / "model.bin")[1]
    reference.write_reference(folder / "model", SMALL, tensors, *batch, torch.float64)
    for name, flags in FLAGS.items():
        run = ["-o", "run", "-x", 2, "-n", 2] if name == TRAIN else []
        mojo_program(name).output(*flags, *run, cwd=folder)
    return folder


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("program", "status", "spoil", "flags", "message", "options"), ROWS)
def test_what_is_wrong_is_said(program, status, spoil, flags, message, options, good, mojo_program, tmp_path):
    if "user" in options and os.getuid() != 0:
        pytest.skip("only root runs programs as another user")
    folder = shutil.copytree(good, tmp_path / "files")
    folder.chmod(0o755)
    spoil(folder)
    before = contents(folder)
    error = mojo_program(program).error(*FLAGS[program], *flags, status=status, cwd=folder, **options)
    assert error.startswith(program.removesuffix(".mojo") + ": ")
    assert re.search(message, error, re.S), error
    assert contents(folder) == before
