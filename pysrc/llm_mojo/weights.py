"""Turns GPT-2 weights from Hugging Face into an llm.c checkpoint, without PyTorch: `python -m llm_mojo weights`.

Files are memory-mapped and written tensor by tensor, so that no more than one tensor is in memory.
"""

import argparse
import json
import re
from pathlib import Path

import numpy as np

from llm_mojo import Error
from llm_mojo.download import fetch
from llm_mojo.formats import (
    CHECKPOINT_BYTES,
    AnyPath,
    FormatError,
    ModelConfig,
    num_parameters,
    parameter_shapes,
    write_checkpoint_blocks,
    write_tokenizer,
)
from llm_mojo.safetensors import Safetensors
from llm_mojo.tokenize import END_OF_TEXT, gpt2_tokenizer, token_bytes

HUB_URL = "https://huggingface.co/openai-community/{name}/resolve/main/model.safetensors"
MODEL_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PUBLISHED = {  # name: layers, heads, channels; the name of the checkpoint as in llm.c
    "gpt2": (12, 12, 768, "gpt2_124M.bin"),
    "gpt2-medium": (24, 16, 1024, "gpt2_355M.bin"),
    "gpt2-large": (36, 20, 1280, "gpt2_774M.bin"),
    "gpt2-xl": (48, 25, 1600, "gpt2_1558M.bin"),
}

# llm.c's tensor: Hugging Face's name, whether it is a Conv1D weight, stored (in, out) and so to be transposed.
# {i} is the layer; the shapes are those of parameter_shapes.
SOURCES = {
    "wte": ("wte.weight", False),
    "wpe": ("wpe.weight", False),
    "ln1w": ("h.{i}.ln_1.weight", False),
    "ln1b": ("h.{i}.ln_1.bias", False),
    "qkvw": ("h.{i}.attn.c_attn.weight", True),
    "qkvb": ("h.{i}.attn.c_attn.bias", False),
    "attprojw": ("h.{i}.attn.c_proj.weight", True),
    "attprojb": ("h.{i}.attn.c_proj.bias", False),
    "ln2w": ("h.{i}.ln_2.weight", False),
    "ln2b": ("h.{i}.ln_2.bias", False),
    "fcw": ("h.{i}.mlp.c_fc.weight", True),
    "fcb": ("h.{i}.mlp.c_fc.bias", False),
    "fcprojw": ("h.{i}.mlp.c_proj.weight", True),
    "fcprojb": ("h.{i}.mlp.c_proj.bias", False),
    "lnfw": ("ln_f.weight", False),
    "lnfb": ("ln_f.bias", False),
}
BUFFER = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")
LM_HEAD = "lm_head.weight"
PREFIX = "transformer."

# What config.json may say: each other value means another model. A missing key has GPT-2's value.
CONFIG_VALUES = {
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),  # two names of the tanh approximation
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
}
CONFIG_SIZES = ("n_positions", "vocab_size", "n_layer", "n_head", "n_embd")  # in the order of ModelConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `python -m llm_mojo weights`."""
    parser.add_argument(
        "model", metavar="MODEL|FOLDER", help=f"{', '.join(PUBLISHED)}, or a folder with {MODEL_FILE} and config.json"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="checkpoint to write (default gpt2_124M.bin etc., or FOLDER's name.bin)",
    )
    parser.add_argument(
        "--dtype", choices=CHECKPOINT_BYTES, default="float32", help="of the checkpoint (default float32)"
    )


def run(args: argparse.Namespace) -> None:
    """Runs `python -m llm_mojo weights`."""
    if args.model in PUBLISHED:
        *sizes, file_name = PUBLISHED[args.model]
        config = ModelConfig(1024, 50257, *sizes)
        tokenizer = gpt2_tokenizer()
        tensors = Safetensors([fetch(args.model, MODEL_FILE, HUB_URL.format(name=args.model))])
        out = args.out or Path(file_name)
        convert(tensors, config, out, args.dtype)
        _write_tokenizer(out.with_name("gpt2_tokenizer.bin"), tokenizer.tokens, tokenizer.eot)
        return
    folder = Path(args.model)
    if not folder.is_dir():
        raise Error(
            f"weights: expected one of {', '.join(PUBLISHED)} or a folder, found no folder {folder}; check the path"
        )
    config = read_config(folder / "config.json")
    out = args.out or Path(f"{folder.resolve().name}.bin")
    convert(Safetensors(_files_of_folder(folder)), config, out, args.dtype)
    tokens = read_tokens_of_folder(folder, config.vocab_size)
    if tokens:
        eot = END_OF_TEXT.encode()
        _write_tokenizer(
            out.with_name(f"{out.stem}_tokenizer.bin"), tokens, tokens.index(eot) if eot in tokens else None
        )


def _write_tokenizer(path, tokens, eot):
    write_tokenizer(path, tokens, eot)
    print(f"wrote {path}: vocabulary of {len(tokens):,} ({path.stat().st_size:,} bytes)")


# ---------------------------------------------------------------------------------------------------------------------
# tensors


def convert(tensors: Safetensors, config: ModelConfig, out: AnyPath, dtype: str) -> None:
    """Writes the checkpoint `out` from a Safetensors; raises FormatError if it is not a GPT-2 of these sizes."""
    names = _match_names(tensors, config)
    shapes = parameter_shapes(config)

    def blocks(tensor):
        """The tensor of each layer, as float32 (out, in); wte with its padding rows of zero."""
        source, transposed = SOURCES[tensor]
        shape = shapes[tensor][1:] if "{i}" in source else shapes[tensor]
        if tensor == "wte":
            shape = (config.vocab_size, config.channels)
        for name in names[tensor]:
            values = tensors.read(name, shape[::-1] if transposed else shape)
            yield values.T if transposed else values
        if tensor == "wte":
            yield np.zeros((config.padded_vocab_size - config.vocab_size, config.channels), dtype=np.float32)

    write_checkpoint_blocks(out, config, blocks, dtype)
    print(f"wrote {out}: {config}, {num_parameters(config):,} parameters, {dtype} ({Path(out).stat().st_size:,} bytes)")


def _match_names(tensors, config):
    """Returns llm.c's name -> names in the file, one for each layer. Every tensor in the file must have its place."""
    prefix = PREFIX if f"{PREFIX}wte.weight" in tensors.places else ""
    names = {}
    for tensor, (name, _) in SOURCES.items():
        layers = range(config.num_layers) if "{i}" in name else [0]
        names[tensor] = [prefix + name.format(i=i) for i in layers]
    expected = {name for group in names.values() for name in group}
    found = {name for name in tensors.places if name != LM_HEAD and not BUFFER.fullmatch(name.removeprefix(prefix))}
    if missing := sorted(expected - found):
        raise FormatError(
            f"weights: {tensors}: expected {missing[0]}, found no such tensor"
            f" ({len(missing)} missing); this is not a whole GPT-2"
        )
    if unknown := sorted(found - expected):
        raise FormatError(
            f"weights: {tensors}: found {unknown[0]}, which a GPT-2 of {config} has no place for"
            f" ({len(unknown)} such); give a plain GPT-2"
        )
    if LM_HEAD in tensors.places:
        shape = (config.vocab_size, config.channels)
        if not np.array_equal(tensors.read(LM_HEAD, shape), tensors.read(names["wte"][0], shape)):
            raise FormatError(
                f"weights: {tensors}: expected lm_head.weight to equal wte.weight, found other values; this GPT-2 ties them"
            )
    return names


# ---------------------------------------------------------------------------------------------------------------------
# a folder as save_pretrained writes it


def _files_of_folder(folder):
    """The .safetensors files of a folder: model.safetensors, or the shards that its index names."""
    if (folder / MODEL_FILE).is_file():
        return [folder / MODEL_FILE]
    index = folder / INDEX_FILE
    if not index.is_file():
        raise Error(
            f"weights: {folder}: expected {MODEL_FILE} or {INDEX_FILE}, found neither;"
            " save the model with save_pretrained"
        )
    files = [folder / name for name in sorted(set(_read_json(index)["weight_map"].values()))]
    if missing := [file for file in files if not file.is_file()]:
        raise Error(f"weights: {missing[0]}: no such file, but {index} names it; get the missing shards")
    return files


def read_config(path: Path) -> ModelConfig:
    """Returns the ModelConfig of a Hugging Face config.json; refuses what this GPT-2 cannot do."""
    if not path.is_file():
        raise Error(f"weights: {path}: no such file; the folder needs the model's config.json")
    config = _read_json(path)
    if missing := [key for key in CONFIG_SIZES if not isinstance(config.get(key), int)]:
        raise FormatError(
            f"weights: {path}: expected {missing[0]}, found {config.get(missing[0])};"
            " this is not the config.json of a GPT-2"
        )
    sizes = ModelConfig(*(config[key] for key in CONFIG_SIZES))
    allowed = CONFIG_VALUES | {"n_inner": (None, 4 * sizes.channels)}
    for key, values in allowed.items():
        if config.get(key, values[0]) not in values:
            wanted = " or ".join(map(str, values))
            raise FormatError(
                f"weights: {path}: expected {key} {wanted}, found {config[key]}; this GPT-2 cannot compute that model"
            )
    return sizes


def read_tokens_of_folder(folder: Path, vocab_size: int) -> list[bytes] | None:
    """Returns the bytes of each token from vocab.json or tokenizer.json, or None, saying why, if there are none to use."""
    try:
        vocabulary = _read_vocabulary(folder)
    except KeyError as error:
        print(
            f"{folder}: no tokenizer file is written: its tokenizer has {error}, which is not in GPT-2's byte alphabet"
        )
        return None
    if not vocabulary:
        print(
            f"{folder}: no tokenizer file is written: found no byte-level BPE or characters in vocab.json or tokenizer.json"
        )
        return None
    if sorted(vocabulary) != list(range(len(vocabulary))) or len(vocabulary) > vocab_size:
        print(
            f"{folder}: no tokenizer file is written: its {len(vocabulary)} tokens are not numbered"
            f" for a vocabulary of {vocab_size}"
        )
        return None
    return [vocabulary[id] for id in range(len(vocabulary))]


def _read_vocabulary(folder):
    """Returns id -> bytes. Tokens are spelled in GPT-2's byte alphabet, but special ones as they are."""
    spelled, special = {}, {END_OF_TEXT: None}
    if (folder / "vocab.json").is_file():
        spelled = _read_json(folder / "vocab.json")
    elif (folder / "tokenizer.json").is_file():
        tokenizer = _read_json(folder / "tokenizer.json")
        if tokenizer["model"].get("type") == "WordLevel":
            return {id: text.encode() for text, id in tokenizer["model"]["vocab"].items()}
        if tokenizer["model"].get("type") == "BPE":
            special = {token["content"]: token["id"] for token in tokenizer.get("added_tokens", [])}
            spelled = tokenizer["model"]["vocab"] | special
    return {id: text.encode() if text in special else token_bytes(text) for text, id in spelled.items()}


def _read_json(path):
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FormatError(
            f"weights: {path}: expected JSON, found something else ({error}); get the file again"
        ) from None
    if not isinstance(value, dict):
        raise FormatError(f"weights: {path}: expected a JSON object, found {type(value).__name__}; get the file again")
    return value
