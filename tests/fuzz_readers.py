"""Feeds damaged files to one Python reader in this process: `fuzz_readers.py KIND FOLDER INPUTS SEED`.

Each input is a valid file with some bytes changed. A reader may return data or raise Error; everything else, more than a
gigabyte of memory beyond what is imported, or more than some seconds, is a fault. Prints the faults; status 1 if there are any.
"""

import bz2
import contextlib
import gzip
import io
import json
import lzma
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import traceback
from pathlib import Path

os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np  # after what it reads

from llm_mojo import Error, formats
from read_documents import documents

GIGABYTE = 1 << 30
SECONDS = 20
MOST_SHOWN = 5
SMALL = formats.ModelConfig(16, 40, 2, 2, 8)
NUMBERS = (0, 1, -1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, -(2**63))
PIECES = [
    b"[" * 5000,
    b"{" * 300,
    b"1e999",
    b"-1",
    b"NaN",
    b"null",
    b"\\ud800",
    b"\\u0000",
    b'"',
    b"\xff\xfe",
    b"\xed\xa0\x80",
]
PIECES += [
    b"9" * 400,
    b"true",
    b"{}",
    b"[]",
    b"\r\n",
    b"\0",
    b",",
    b":",
    b"2000000000",
    b"../../x",
    b" " * 3000,
    b"\x1b[2J",
]
LINES = ["one two", "drei", "四 五", 'a "quoted" one', "", "x, y", "\\n"]


def mutated(content: bytes, dice: random.Random) -> bytes:
    """A file with one to four changes: bits, bytes, numbers, pieces of formats, cuts and copies."""
    data = bytearray(content)
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(data) + 1)
        # Heads decide more than bodies.
        at = min(at, dice.choice([at, 16, 64, 1024]))
        kind = dice.randrange(8)
        if kind == 0 and data:
            data[min(at, len(data) - 1)] ^= 1 << dice.randrange(8)
        elif kind == 1 and data:
            data[min(at, len(data) - 1)] = dice.choice([0, 0xFF, 0x7F, 0x80, 0x22, 0x7B, 0x5B, 0x30])
        elif kind == 2:
            size = dice.choice([2, 4, 8])
            data[at : at + size] = (dice.choice(NUMBERS) % 256**size).to_bytes(size, dice.choice(["little", "big"]))
        elif kind == 3:
            data[at:at] = dice.choice(PIECES)
        elif kind == 4:
            piece = dice.choice(PIECES)
            data[at : at + len(piece)] = piece
        elif kind == 5:
            del data[at : at + dice.randint(1, max(len(data) // 4, 1))]
        elif kind == 6:
            del data[at:]
        elif kind == 7:
            other = dice.randrange(len(data) + 1)
            data[at:at] = data[other : other + dice.randint(1, 300)]
    return bytes(data)


class Reader:
    """Files of a kind: makes valid ones in a folder, and reads them. Some of them are what is damaged."""

    def __init__(self, names, make, read):
        self.names, self.make, self.read = names, make, read


def texts(name, content, **options):
    from llm_mojo.readers import reader_for

    def read(folder):
        documents(reader_for(folder / name, **options), folder / name)

    return Reader([name], lambda folder: (folder / name).write_bytes(content()), read)


def json_lines():
    return "".join(json.dumps({"text": text, "n": [1, {"a": None}]}) + "\n" for text in LINES * 4).encode()


def parquet():
    import pyarrow
    import pyarrow.parquet

    sink = io.BytesIO()
    table = pyarrow.table({"text": LINES * 30, "n": list(range(len(LINES) * 30))})
    pyarrow.parquet.write_table(table, sink, row_group_size=50)
    return sink.getvalue()


def checkpoint(folder, dtype="float32"):
    generator = np.random.default_rng(0)
    tensors = {
        name: generator.normal(size=shape).astype("f4") for name, shape in formats.parameter_shapes(SMALL).items()
    }
    formats.write_checkpoint(folder / "model.bin", SMALL, tensors, dtype)
    return tensors


def read_checkpoint(folder):
    for tensor in formats.read_checkpoint(folder / "model.bin")[1].values():
        tensor.sum()


def make_state(folder):
    values = np.ones(formats.num_parameters(SMALL), "f4")
    order = np.arange(3, dtype="<i4")
    rng = np.zeros((), formats.STATE_RNG)
    state = formats.TrainingState(3, 0, 2, values, values, values, order, order, rng)
    formats.write_state(folder / "state.bin", state)


def vocabulary(folder):
    tokens = [bytes([value]) for value in range(256)] + [b"th", b"the", b"<|endoftext|>"]
    formats.write_tokenizer(folder / "tokenizer.bin", tokens, 258)


def read_vocabulary(folder):
    from llm_mojo.tokenize import open_tokenizer

    formats.read_tokenizer(folder / "tokenizer.bin")
    open_tokenizer(folder / "tokenizer.bin").encode([("the end", True)])


def hugging_face(folder):
    from llm_mojo.__main__ import main

    vocabulary(folder)
    config = formats.ModelConfig(16, 259, 2, 2, 8)
    generator = np.random.default_rng(0)
    tensors = {
        name: generator.normal(size=shape).astype("f4") for name, shape in formats.parameter_shapes(config).items()
    }
    formats.write_checkpoint(folder / "model.bin", config, tensors)
    argv = ["export", f"{folder}/model.bin", "--to", f"{folder}/hf", "--tokenizer", f"{folder}/tokenizer.bin"]
    if main(argv):
        raise AssertionError("the export failed")


def command(*words):
    """Reads by a command, which may fail with a message only."""

    def read(folder):
        from llm_mojo.__main__ import main

        for leftover in folder.glob("out*"):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        if main([str(word).format(folder) for word in words]) not in (0, 1):
            raise AssertionError("another status than 0 and 1")

    return read


def torch_weights(folder):
    import torch
    from safetensors.numpy import load_file

    hugging_face(folder)
    weights = {name: torch.from_numpy(value) for name, value in load_file(folder / "hf/model.safetensors").items()}
    torch.save(weights, folder / "hf/pytorch_model.bin")
    (folder / "hf/model.safetensors").unlink()


def meta(folder):
    characters = sorted(set("hello world"))
    table = {"vocab_size": len(characters), "stoi": {c: i for i, c in enumerate(characters)}}
    (folder / "meta.pkl").write_bytes(pickle.dumps(table | {"itos": dict(enumerate(characters))}))


def read_meta(folder):
    from llm_mojo.tokenize import read_meta

    read_meta(folder / "meta.pkl")


def bpe(folder):
    from llm_mojo.tokenize import byte_alphabet

    merges = [("t", "h"), ("th", "e"), ("Ġ", "w")]
    tokens = [*byte_alphabet(), *map("".join, merges), "<|endoftext|>"]
    (folder / "encoder.json").write_text(json.dumps({token: id for id, token in enumerate(tokens)}))
    (folder / "vocab.bpe").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))


def read_bpe(folder):
    from llm_mojo.tokenize import read_bpe

    read_bpe(folder / "vocab.bpe", folder / "encoder.json")


def prepared(folder):
    (folder / "a.txt").write_text("the end of it\n" * 30)
    argv = ["prepare", f"{folder}/a.txt", "--tokenizer", "byte", "--out", f"{folder}/data"]
    from llm_mojo.__main__ import main

    if main(argv):
        raise AssertionError("prepare failed")
    journal = {"journal": 1, "recipe": {}, "inputs": [], "sources": ["a.txt"], "state": {"a": 1}, "stem": "a"}
    (folder / "journal.json").write_text(json.dumps(journal))


def read_prepared(folder):
    from llm_mojo.prepared import read_journal, read_manifest

    read_manifest(folder / "data/manifest.json")
    read_journal(folder)


def run_folder(folder):
    lines = [{"step": 0, "val_loss": 4.0}]
    lines += [{"step": i, "loss": 3.9 - i / 100, "ms": 10.5, "tokens": 64, "lr": 1e-3} for i in range(1, 20)]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "run.toml").write_text(
        "init = \"d12\"\nmax-steps = 20\nlearning-rate = 1e-3\nout = 'a b'\nx = true # note\n"
    )
    (folder / "text.json").write_text(json.dumps({"text": ["a"], "settings": {"max-steps": 20}}))
    trials = [{"rates": {"learning-rate": 0.1}, "steps": 8, "val_loss": 3.0}]
    (folder / "tune.json").write_text(json.dumps({"asked": {"a": 1}, "full_steps": 64, "steps": [8], "trials": trials}))


def read_run(folder):
    from llm_mojo import runs, tune
    from llm_mojo.plot import read_curves
    from llm_mojo.run_log import read_settings

    read_settings(folder / "run.toml")
    run = runs.Run(folder)
    run.steps(), run.is_finished(), run.was_asked_for({"text": ["a"], "settings": {"max-steps": 20}})
    tune._read(folder, {"a": 1})
    read_curves(folder / "log.jsonl", "run")


def tokens(name, content):
    def read(folder):
        formats.read_tokens(folder / name)[:100].sum()

    return Reader([name], lambda folder: (folder / name).write_bytes(content(folder)), read)


def shard(folder):
    formats.write_tokens(folder / "made.bin", np.arange(300) % 40)
    return (folder / "made.bin").read_bytes()


def npy(folder):
    sink = io.BytesIO()
    np.save(sink, (np.arange(300) % 40).astype("u2"))
    return sink.getvalue()


def questions(folder):
    vocabulary(folder)
    formats.write_hellaswag(folder / "q.bin", [formats.Choice([1, 2, 3], [[4], [5, 6], [7], [8]], 2)] * 5)


WEIGHTS = command("weights", "{}/hf", "--out", "{}/out.bin")
PLAIN = "\n\n".join(LINES * 5).encode()
READERS = {
    "text": texts("a.txt", lambda: PLAIN, separator="\n\n"),
    "json-lines": texts("a.jsonl", json_lines),
    "json": texts("a.json", json_lines),
    "csv": texts("a.csv", lambda: ("text,n\n" + "".join(f'"{text}",1\n' for text in ["a", "b\nc", "d"] * 9)).encode()),
    "tsv": texts("a.tsv", lambda: b"n\ttext\n" + b"1\tone\n2\ttwo\n" * 9),
    "parquet": texts("a.parquet", parquet),
    "gzip": texts("a.jsonl.gz", lambda: gzip.compress(json_lines())),
    "bz2": texts("a.txt.bz2", lambda: bz2.compress(PLAIN)),
    "xz": texts("a.csv.xz", lambda: lzma.compress(b"text\n" + b"one\ntwo\n" * 20)),
    "checkpoint": Reader(["model.bin"], checkpoint, read_checkpoint),
    "checkpoint-bf16": Reader(["model.bin"], lambda folder: checkpoint(folder, "bfloat16"), read_checkpoint),
    "state": Reader(["state.bin"], make_state, lambda folder: formats.read_state(folder / "state.bin", SMALL)),
    "shard": tokens("a.bin", shard),
    "npy": tokens("a.npy", npy),
    "hellaswag": Reader(["q.bin"], questions, lambda folder: formats.read_hellaswag(folder / "q.bin")),
    "tokenizer": Reader(["tokenizer.bin"], vocabulary, read_vocabulary),
    "meta": Reader(["meta.pkl"], meta, read_meta),
    "bpe": Reader(["encoder.json", "vocab.bpe"], bpe, read_bpe),
    "safetensors": Reader(["hf/model.safetensors"], hugging_face, WEIGHTS),
    "hugging-face": Reader(["hf/config.json", "hf/tokenizer.json", "hf/tokenizer_config.json"], hugging_face, WEIGHTS),
    "pytorch": Reader(["hf/pytorch_model.bin"], torch_weights, WEIGHTS),
    "prepared": Reader(["data/manifest.json", "journal.json"], prepared, read_prepared),
    "prepare-again": Reader(
        ["data/manifest.json"],
        prepared,
        command("prepare", "{}/a.txt", "--tokenizer", "byte", "--out", "{}/data"),
    ),
    "run": Reader(["log.jsonl", "run.toml", "text.json", "tune.json"], run_folder, read_run),
}


def limit_memory():
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + GIGABYTE
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def too_long(number, frame):
    raise TimeoutError(f"longer than {SECONDS} s")


def main(kind, folder, inputs, seed):
    reader, dice, faults, data = READERS[kind], random.Random(f"{kind} {seed}"), [], 0
    folder = Path(folder)
    silent = io.StringIO()
    with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
        reader.make(folder)
        whole = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        reader.read(folder)  # As it is, it must be read.
    limit_memory()
    signal.signal(signal.SIGALRM, too_long)
    for number in range(inputs):
        for path, content in whole.items():
            if not path.is_file() or path.read_bytes() != content:
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(content)
        damaged = folder / dice.choice(reader.names)
        damaged.write_bytes(mutated(whole[damaged], dice))
        signal.alarm(SECONDS)
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                reader.read(folder)
            data += 1
        except Error:
            pass
        except BaseException:
            if len(faults) < MOST_SHOWN:
                shutil.copy(damaged, f"{folder}.fault{len(faults)}")
            faults.append(f"input {number}, {damaged.name}:\n{traceback.format_exc(limit=-6)}")
        finally:
            signal.alarm(0)
    print(f"{kind}: {inputs} inputs, {data} read, {inputs - data - len(faults)} refused, {len(faults)} faults")
    print("\n".join(faults[:MOST_SHOWN]))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]))
