"""Turns GPT-2 weights from Hugging Face or nanoGPT into an llm.c checkpoint: `python -m llm_mojo weights`.

PyTorch is needed only for its own files. Files are memory-mapped and written tensor by tensor, so that no more than one
tensor is in memory.
"""

import argparse
import os
import re
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from llm_mojo import Error
from llm_mojo.download import fetch
from llm_mojo.files import AnyPath, is_plain_name
from llm_mojo.formats import (
    CHECKPOINT_BYTES,
    HEADER_BYTES,
    INT32_MAX,
    FormatError,
    ModelConfig,
    num_parameters,
    parameter_shapes,
    write_checkpoint_blocks,
    write_tokenizer,
)
from llm_mojo.hf_vocabulary import Unusable, Vocabulary, read_json_object, read_vocabulary
from llm_mojo.safetensors import Safetensors
from llm_mojo.tokenize import gpt2_tokenizer, unused_token
from llm_mojo.torch_weights import TorchWeights, load

HUB_URL = "https://huggingface.co/openai-community/{name}/resolve/main/model.safetensors"
MODEL_FILE = "model.safetensors"
TORCH_FILE = "pytorch_model.bin"
NANOGPT_FILE = "ckpt.pt"
CONFIG_FILE = "config.json"
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
WRAPPERS = ("_orig_mod", "module")

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
NANOGPT_SIZES = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `python -m llm_mojo weights`."""
    parser.add_argument(
        "model",
        metavar="MODEL|FOLDER",
        help=f"{', '.join(PUBLISHED)}, or a folder with {MODEL_FILE} (or {TORCH_FILE}) and config.json, or with nanoGPT's"
        f" {NANOGPT_FILE}",
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
    parser.add_argument("--force", action="store_true", help="replace files that are there and have other content")


def run(args: argparse.Namespace) -> None:
    """Runs `python -m llm_mojo weights`."""
    if args.model in PUBLISHED:
        *sizes, file_name = PUBLISHED[args.model]
        config = ModelConfig(1024, 50257, *sizes)
        tokenizer = gpt2_tokenizer()
        tensors = Safetensors([fetch(args.model, MODEL_FILE, HUB_URL.format(name=args.model))])
        out = args.out or Path(file_name)
        convert(tensors, config, out, args.dtype, replace=args.force)
        _write_tokenizer(out.with_name("gpt2_tokenizer.bin"), tokenizer, args.force)
        return
    folder = Path(args.model)
    if not folder.is_dir():
        raise Error(
            f"weights: expected one of {', '.join(PUBLISHED)} or a folder, found no folder {folder}; check the path"
        )
    out = args.out or Path(f"{Path(os.path.realpath(folder)).name}.bin")
    if (folder / NANOGPT_FILE).is_file() and not (folder / CONFIG_FILE).is_file():
        vocabulary = _convert_nanogpt(folder / NANOGPT_FILE, out, args.dtype, args.force)
    else:
        config = read_config(folder / CONFIG_FILE)
        convert(_open_folder(folder), config, out, args.dtype, replace=args.force)
        try:
            vocabulary = read_vocabulary(folder, config.vocab_size)
        except (Unusable, FormatError) as error:
            print(f"{folder}: no tokenizer file is written: {error}")
            return
    if vocabulary:
        _write_tokenizer(out.with_name(f"{out.stem}_tokenizer.bin"), vocabulary, args.force)


def _write_tokenizer(path, vocabulary, replace):
    write_tokenizer(path, vocabulary.tokens, vocabulary.eot, vocabulary.added, replace)
    print(f"wrote {path}: vocabulary of {len(vocabulary.tokens):,} ({path.stat().st_size:,} bytes)")


# ---------------------------------------------------------------------------------------------------------------------
# tensors


def convert(
    tensors: Safetensors | TorchWeights,
    config: ModelConfig,
    out: AnyPath,
    dtype: str,
    conv1d: bool = True,
    replace: bool = False,
) -> None:
    """Writes the checkpoint `out` from a Safetensors; raises FormatError if it is not a GPT-2 of these sizes.

    `conv1d`: weights are stored (in, out), as Hugging Face does. Biases that a model does not have, as some of nanoGPT's,
    are zero. Without `replace` a file that is there must be the same.
    """
    out = Path(out)
    names = _match_names(tensors, config, conv1d)
    shapes = parameter_shapes(config)
    size = HEADER_BYTES + num_parameters(config) * CHECKPOINT_BYTES[dtype]
    if os.path.lexists(out) and not replace and not (out.is_file() and out.stat().st_size == size):
        raise Error(
            f"weights: {out} is there already, and is not this model; --force replaces it, --out names another file"
        )

    def blocks(tensor):
        """The tensor of each layer, as float32 (out, in); wte with its padding rows of zero."""
        source, transposed = SOURCES[tensor]
        transposed = transposed and conv1d
        shape = shapes[tensor][1:] if "{i}" in source else shapes[tensor]
        if tensor == "wte":
            shape = (config.vocab_size, config.channels)
        for name in names[tensor]:
            if name is None:
                yield np.zeros(shape, dtype=np.float32)
                continue
            values = tensors.read(name, shape[::-1] if transposed else shape)
            yield values.T if transposed else values
        if tensor == "wte":
            yield np.zeros((config.padded_vocab_size - config.vocab_size, config.channels), dtype=np.float32)
        if tensor == list(SOURCES)[-1]:
            tensors.check_unchanged()

    write_checkpoint_blocks(out, config, blocks, dtype, replace)
    print(f"wrote {out}: {config}, {num_parameters(config):,} parameters, {dtype} ({Path(out).stat().st_size:,} bytes)")


def _match_names(tensors, config, needs_biases=True):
    """Returns llm.c's name -> names in the file, one for each layer. Every tensor in the file must have its place.

    Wrappers put their own parts into the names: _orig_mod (torch.compile), module (several processes). wte may be stored
    as lm_head, which is the same tensor. Without `needs_biases` a missing bias is None.
    """
    if config.num_layers > len(tensors.places):
        raise FormatError(
            f"weights: {tensors}: expected {config.num_layers:,} layers, found {len(tensors.places):,} tensors in all;"
            " does config.json belong to it?"
        )
    places: dict[str, str] = {}
    for name in tensors.places:
        bare = ".".join(part for part in name.split(".") if part not in WRAPPERS)
        if places.setdefault(bare, name) != name:
            raise FormatError(f"weights: {tensors}: found both {places[bare]} and {name}; give a plain GPT-2")
    prefix = PREFIX if f"{PREFIX}wpe.weight" in places else ""
    names = {}
    for tensor, (name, _) in SOURCES.items():
        layers = range(config.num_layers) if "{i}" in name else [0]
        names[tensor] = [prefix + name.format(i=i) for i in layers]
    wte = names["wte"][0]
    if wte not in places and LM_HEAD in places:
        names["wte"] = [LM_HEAD]
    expected = {name for group in names.values() for name in group}
    found = {
        name
        for name in places
        if name in expected or (name != LM_HEAD and not BUFFER.fullmatch(name.removeprefix(prefix)))
    }
    missing = sorted(expected - found)
    if not needs_biases:
        missing = [name for name in missing if not name.endswith(".bias")]
    if missing:
        raise FormatError(
            f"weights: {tensors}: expected {missing[0]}, found no such tensor"
            f" ({len(missing)} missing); this is not a whole GPT-2"
        )
    if unknown := sorted(found - expected):
        raise FormatError(
            f"weights: {tensors}: found {unknown[0]}, which a GPT-2 of {config} has no place for"
            f" ({len(unknown)} such); give a plain GPT-2"
        )
    if LM_HEAD in places and names["wte"] != [LM_HEAD]:
        shape = (config.vocab_size, config.channels)
        head, embedding = (tensors.read(places[name], shape) for name in (LM_HEAD, wte))
        if not np.array_equal(head, embedding, equal_nan=True):
            raise FormatError(
                f"weights: {tensors}: expected lm_head.weight to equal wte.weight, found other values; this GPT-2 ties them"
            )
    return {tensor: [places.get(name) for name in group] for tensor, group in names.items()}


# ---------------------------------------------------------------------------------------------------------------------
# a folder as save_pretrained writes it


def _open_folder(folder):
    """The tensors of a folder: of model.safetensors, of the shards that its index names, or of PyTorch's own files."""
    for name, kind in ((MODEL_FILE, Safetensors), (TORCH_FILE, TorchWeights)):
        if (folder / name).is_file():
            return kind([folder / name])
        index = folder / f"{name}.index.json"
        if index.is_file():
            return kind(_files_of_index(folder, index))
    raise Error(
        f"weights: {folder}: expected {MODEL_FILE} or {MODEL_FILE}.index.json, found neither, nor {TORCH_FILE};"
        " save the model with save_pretrained"
    )


def _files_of_index(folder, index):
    places = read_json_object(index).get("weight_map")
    names = sorted(set(places.values())) if _is_weight_map(places) else []
    if not names:
        raise FormatError(
            f"weights: {index}: expected a weight_map with names of files in the folder; get the file again"
        )
    if missing := [folder / name for name in names if not (folder / name).is_file()]:
        raise Error(f"weights: {missing[0]}: no such file, but {index} names it; get the missing shards")
    return [folder / name for name in names]


def _is_weight_map(names: Any) -> TypeGuard[dict[str, str]]:
    return isinstance(names, dict) and all(map(is_plain_name, names.values()))


def read_config(path: Path) -> ModelConfig:
    """Returns the ModelConfig of a Hugging Face config.json; refuses what this GPT-2 cannot do."""
    if not path.is_file():
        raise Error(f"weights: {path}: no such file; the folder needs the model's config.json")
    config = read_json_object(path)
    sizes = _sizes(path, [config.get(key) for key in CONFIG_SIZES], CONFIG_SIZES)
    allowed = CONFIG_VALUES | {"n_inner": (None, 4 * sizes.channels)}
    for key, values in allowed.items():
        if config.get(key, values[0]) not in values:
            wanted = " or ".join(map(str, values))
            raise FormatError(
                f"weights: {path}: expected {key} {wanted}, found {config[key]!s:.60}; this GPT-2 cannot compute that model"
            )
    return sizes


def _sizes(path, values, names):
    for name, value in zip(names, values):
        if type(value) is not int or not 0 < value <= INT32_MAX:
            raise FormatError(
                f"weights: {path}: expected {name}, found {value!s:.60}; these are not the sizes of a GPT-2"
            )
    return ModelConfig(*values)


# ---------------------------------------------------------------------------------------------------------------------
# nanoGPT


def _convert_nanogpt(path, out, dtype, replace):
    """Writes the checkpoint of nanoGPT's ckpt.pt; returns GPT-2's vocabulary for it, or None if it has another."""
    saved = load(path)
    arguments, state = saved.get("model_args"), saved.get("model")
    if not isinstance(arguments, dict) or not isinstance(state, dict):
        raise FormatError(f"weights: {path}: expected nanoGPT's model_args and model, found something else")
    config = _sizes(path, [arguments.get(name) for name in NANOGPT_SIZES], NANOGPT_SIZES)
    convert(TorchWeights([path], [state]), config, out, dtype, conv1d=False, replace=replace)
    print(f"{path}: nanoGPT's GELU is exact, this one GPT-2's approximation: its logits differ a little (about 0.001)")
    tokenizer = None
    if 50257 <= config.vocab_size <= 50304:
        try:
            tokenizer = gpt2_tokenizer()
        except Error as error:
            print(f"{path}: no tokenizer file is written: {error}")
    if tokenizer is None:
        print(f"{path}: its text's meta.pkl, or that text's tokenizer.bin, is the tokenizer (--tokenizer)")
        return None
    unused = list(range(len(tokenizer.tokens), config.vocab_size))
    return Vocabulary(tokenizer.tokens + [unused_token(id) for id in unused], tokenizer.eot, unused)
