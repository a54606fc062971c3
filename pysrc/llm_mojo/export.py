"""Turns a checkpoint and its vocabulary into a folder that Hugging Face loads, or a file for llama.cpp: `python -m llm_mojo
export`.

    AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)

The tensors are those of `weights`, the other way round: without the padding of the vocabulary, Conv1D weights (in,
out), the output layer tied to wte. `weights FOLDER` gives the checkpoint back, byte for byte.
"""

import argparse
import functools
import hashlib
import json
import os
from pathlib import Path

from llm_mojo import Error, gguf_export
from llm_mojo.callables import callable_module, run_command
from llm_mojo.files import atomic_folder, naming
from llm_mojo.formats import map_checkpoint, parameter_shapes, read_added_tokens, read_tokenizer
from llm_mojo.hf_tokenizer import TOKENIZER_FILES, tokenizer_files
from llm_mojo.model_card import card, title
from llm_mojo.run_files import expect_own_tokenizer, find_tokenizer, newest_checkpoint
from llm_mojo.safetensors import Safetensors, write_safetensors
from llm_mojo.weights import CONFIG_FILE, CONFIG_SIZES, CONFIG_VALUES, MODEL_FILE, PREFIX, SOURCES

GENERATION_FILE = "generation_config.json"
CARD_FILE = "README.md"
FILES = (MODEL_FILE, CONFIG_FILE, GENERATION_FILE, CARD_FILE, *TOKENIZER_FILES)
DTYPES = {"float32": "F32", "bfloat16": "BF16"}
PRODUCER = {"format": "pt", "producer": "llm.mojo"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `python -m llm_mojo export`."""
    parser.add_argument(
        "model", type=Path, metavar="RUN|CHECKPOINT", help="folder of a run (its newest checkpoint), or FILE.bin"
    )
    parser.add_argument("--to", type=Path, metavar="DIR", help="folder to write, for transformers")
    parser.add_argument("--to-gguf", type=Path, metavar="FILE", help="file to write, for llama.cpp")
    parser.add_argument(
        "--gguf-type", choices=gguf_export.TYPES, default="fp32", help="numbers of its matrices (default: %(default)s)"
    )
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="the model's tokenizer.bin (default: the run's)")
    parser.add_argument(
        "--force",
        action="store_true",
        help="write into a folder that is no export, or one of another model; other files stay",
    )


def run(args: argparse.Namespace) -> None:
    """Runs `python -m llm_mojo export`."""
    if not args.to and not args.to_gguf:
        raise Error("export: expected --to DIR (for transformers) or --to-gguf FILE (for llama.cpp): where to write?")
    checkpoint = newest_checkpoint(args.model) if args.model.is_dir() else args.model
    config, dtype, tensors = map_checkpoint(checkpoint)
    tokenizer = args.tokenizer or find_tokenizer(checkpoint, config.vocab_size)
    tokens, eot = read_tokenizer(tokenizer)
    if len(tokens) != config.vocab_size:
        raise Error(
            f"export: {tokenizer} has {len(tokens):,} tokens, the model {config.vocab_size:,}; give the tokenizer"
            " that the model was trained with (--tokenizer)"
        )
    expect_own_tokenizer(tokenizer, checkpoint)
    added = read_added_tokens(tokenizer)
    try:
        texts = tokenizer_files(tokens, eot, config.max_seq_len, added)
        if args.to_gguf:
            gguf_export.vocabulary(tokens, eot, config.max_seq_len, added)
    except Error as error:
        raise Error(f"export: {tokenizer}: {error}") from None
    text = card(checkpoint, config, dtype, "byte-level BPE" if "vocab.json" in texts else "single characters")
    if args.to_gguf:
        gguf_export.check_target(args.to_gguf, args.force)
    if args.to:
        _export_folder(args, checkpoint, config, dtype, tensors, eot, texts | {CARD_FILE: text})
        print(
            f"wrote {args.to}: {checkpoint} ({config.vocab_size:,} tokens, {dtype}) with the vocabulary of {tokenizer}"
        )
    if args.to_gguf:
        model = (config, tensors, tokens, eot, added)
        gguf_export.write_gguf(args.to_gguf, *model, args.gguf_type, title(checkpoint), text)
        print(f"wrote {args.to_gguf}: {checkpoint} ({args.gguf_type}) with the vocabulary of {tokenizer}")
    if any(tensors["wte"][config.vocab_size :].ravel()):
        print(f"{checkpoint}: the padding rows of wte are not zero; they are no part of the model and are left out")


def _export_folder(args, checkpoint, config, dtype, tensors, eot, texts):
    texts[CONFIG_FILE] = _json(_model_config(config, dtype, eot))
    texts[GENERATION_FILE] = _json(_special_ids(eot))
    source = _identity(args.model)
    _check_target(args.to, source, args.force)
    metadata = PRODUCER | {"source": source}
    _write_folder(args.to, texts, lambda file: write_safetensors(file, _entries(config, dtype, tensors), metadata))


# ---------------------------------------------------------------------------------------------------------------------
# what is exported


def _entries(config, dtype, tensors):
    """The tensors of the .safetensors file, as write_safetensors takes them."""
    shapes = parameter_shapes(config) | {"wte": (config.vocab_size, config.channels)}
    entries = {}
    for tensor, (name, transposed) in SOURCES.items():
        per_layer = "{i}" in name
        shape = shapes[tensor][1:] if per_layer else shapes[tensor]
        for i in range(config.num_layers if per_layer else 1):
            values = tensors[tensor][i] if per_layer else tensors[tensor][: shape[0]]
            values = values.T if transposed else values
            entries[PREFIX + name.format(i=i)] = (DTYPES[dtype], values.shape, lambda values=values: values)
    return entries


def _model_config(config, dtype, eot):
    """The content of config.json; what is not said has GPT-2's value."""
    sizes = (config.max_seq_len, config.vocab_size, config.num_layers, config.num_heads, config.channels)
    return (
        {"architectures": ["GPT2LMHeadModel"], "dtype": dtype, "torch_dtype": dtype}
        | dict(zip(CONFIG_SIZES, sizes))
        | {name: values[0] for name, values in CONFIG_VALUES.items()}
        | {"bos_token_id": eot, "eos_token_id": eot}
    )


def _special_ids(eot):
    """The content of generation_config.json: where a text begins and ends."""
    return {} if eot is None else {"bos_token_id": eot, "eos_token_id": eot, "pad_token_id": eot}


def _json(value):
    return json.dumps(value, indent=2) + "\n"


# ---------------------------------------------------------------------------------------------------------------------
# the folder


def _check_target(folder, source, force):
    """Raises Error if the folder is one that an export of this source would spoil."""
    if folder.exists() and not folder.is_dir():
        raise Error(f"export: {folder}: expected the name of a folder, found a file; choose another --to")
    if force or not folder.exists():
        return
    names = {path.name for path in folder.iterdir()}
    if not names:
        return
    metadata = _metadata_of(folder / MODEL_FILE)
    if not names <= set(FILES) or metadata.get("producer") != PRODUCER["producer"]:
        other = min(names - set(FILES), default=MODEL_FILE)
        raise Error(
            f"export: {folder} holds something that is not an export of a model: {other};"
            " choose another --to, or use --force to write into it (other files stay)"
        )
    if metadata.get("source") != source:
        raise Error(
            f"export: {folder} holds an export of another run or checkpoint; choose another --to, or replace it with --force"
        )


def _metadata_of(path):
    try:
        return Safetensors([path]).metadata
    except (Error, OSError):
        return {}


def _identity(source):
    """Tells one run or checkpoint from another by its place, which is nobody else's business: only a hash is written."""
    return hashlib.sha256(os.fsencode(os.path.abspath(source))).hexdigest()[:16]


def _write_folder(folder, texts, write_model):
    """Writes all files beside the folder first; then they move.

    An export that is there before loses its config.json first and gets the new one last: what loads is whole.
    """
    folder = Path(os.path.abspath(folder))
    with atomic_folder(folder) as staged:
        for name in (*texts, MODEL_FILE):
            with open(staged / name, "wb") as file, naming(folder / name):
                write_model(file) if name == MODEL_FILE else file.write(texts[name].encode())
                file.flush()
                os.fsync(file.fileno())
        folder.mkdir(exist_ok=True)
        (folder / CONFIG_FILE).unlink(missing_ok=True)
        for name in FILES:
            if name not in texts and name != MODEL_FILE:
                (folder / name).unlink(missing_ok=True)
        for name in sorted((*texts, MODEL_FILE), key=CONFIG_FILE.__eq__):
            os.replace(staged / name, folder / name)


callable_module(__name__, functools.partial(run_command, "export"))
