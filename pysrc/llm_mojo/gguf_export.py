"""Writes a checkpoint and its vocabulary as a GGUF file, which llama.cpp and what is built on it load.

The tensors are llm.c's: linear weights (out, in) as llama.cpp has them too, the output layer tied to the embedding. Biases
and the weights of layer norms stay in fp32 whatever the type, as llama.cpp has them.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from llm_mojo import Error
from llm_mojo.files import atomic_file
from llm_mojo.formats import ModelConfig, bfloat16_to_float32
from llm_mojo.hf_tokenizer import tokenizer_files

TYPES = ("fp32", "f16", "q8_0")
MAGIC = b"GGUF"
LAYER_NORM_EPSILON = 1e-5
Q8_BLOCK = 32
NAMES = {  # ours: llama.cpp's, for a layer {i}
    "wte": "token_embd.weight",
    "wpe": "position_embd.weight",
    "ln1w": "blk.{i}.attn_norm.weight",
    "ln1b": "blk.{i}.attn_norm.bias",
    "qkvw": "blk.{i}.attn_qkv.weight",
    "qkvb": "blk.{i}.attn_qkv.bias",
    "attprojw": "blk.{i}.attn_output.weight",
    "attprojb": "blk.{i}.attn_output.bias",
    "ln2w": "blk.{i}.ffn_norm.weight",
    "ln2b": "blk.{i}.ffn_norm.bias",
    "fcw": "blk.{i}.ffn_up.weight",
    "fcb": "blk.{i}.ffn_up.bias",
    "fcprojw": "blk.{i}.ffn_down.weight",
    "fcprojb": "blk.{i}.ffn_down.bias",
    "lnfw": "output_norm.weight",
    "lnfb": "output_norm.bias",
}
ALWAYS_FP32 = {"wpe"}
TOKEN_TYPES = {"normal": 1, "control": 3, "user defined": 4, "unused": 5}


def check_target(path: Path, force: bool) -> None:
    """Raises Error if something is under the name that is no GGUF file."""
    if path.is_dir():
        raise Error(f"export: {path}: expected the name of a file, found a folder; name a file in it")
    if os.path.lexists(path) and not force:
        with open(path, "rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise Error(f"export: {path} is there and is no GGUF file; --force replaces it, or choose another name")


def vocabulary(tokens, eot, max_length, added=()) -> tuple[list[str], list[int], list[str]]:
    """The vocabulary as llama.cpp's byte-level BPE has it: spellings by id, their types, and the merges in order.

    Raises Error if it is no byte-level BPE, or one without any merge: llama.cpp has no other tokenizer for a GPT-2.
    """
    files = tokenizer_files(tokens, eot, max_length, added)
    if "vocab.json" not in files:
        raise Error(
            "expected a byte-level BPE (GPT-2's, or one that `python -m llm_mojo tokenizer` made), found single characters,"
            " which llama.cpp's tokenizers cannot express; export for transformers with --to, or train with another"
            " vocabulary"
        )
    spelled = {id: text for text, id in json.loads(files["vocab.json"]).items()}
    merges = files["merges.txt"].splitlines()[1:]
    if not merges:
        raise Error(
            "expected a byte-level BPE with merges, found the single bytes, which llama.cpp's tokenizers cannot express;"
            " export for transformers with --to, or train with another vocabulary (`python -m llm_mojo tokenizer`)"
        )
    special = {*added} if eot is None else {*added, eot}
    texts, types = [], []
    for id in range(len(tokens)):
        texts.append(spelled.get(id, f"[UNUSED{id}]"))
        kind = (
            "unused" if id not in spelled else "control" if id == eot else "user defined" if id in special else "normal"
        )
        types.append(TOKEN_TYPES[kind])
    return texts, types, merges


def write_gguf(path: Path, config: ModelConfig, tensors, tokens, eot, added, kind: str, name: str, card: str) -> None:
    """Writes the whole file, or nothing. `kind` is one of TYPES, `card` what there is to say about the model.

    Raises Error if llama.cpp cannot have the vocabulary, or the type not the width.
    """
    from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, quants

    if kind == "q8_0" and config.channels % Q8_BLOCK:
        raise Error(
            f"export: q8_0 has blocks of {Q8_BLOCK} numbers, this model is {config.channels} wide; use --gguf-type f16"
        )
    texts, types, merges = vocabulary(tokens, eot, config.max_seq_len, added)
    with atomic_file(path) as file:
        # It opens its file by name: by that of ours, which has none of its own yet.
        writer = GGUFWriter(f"/proc/self/fd/{file.fileno()}", "gpt2")
        writer.add_name(name)
        writer.add_description(card)
        writer.add_block_count(config.num_layers)
        writer.add_context_length(config.max_seq_len)
        writer.add_embedding_length(config.channels)
        writer.add_feed_forward_length(4 * config.channels)
        writer.add_head_count(config.num_heads)
        writer.add_layer_norm_eps(LAYER_NORM_EPSILON)
        file_types = {"fp32": LlamaFileType.ALL_F32, "f16": LlamaFileType.MOSTLY_F16, "q8_0": LlamaFileType.MOSTLY_Q8_0}
        writer.add_file_type(file_types[kind])
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(texts)
        writer.add_token_types(types)
        writer.add_token_merges(merges)
        writer.add_add_bos_token(False)
        if eot is not None:
            writer.add_bos_token_id(eot)
            writer.add_eos_token_id(eot)
        for tensor, values in _tensors(config, tensors):
            if values.ndim == 1 or tensor in {NAMES[each] for each in ALWAYS_FP32} or kind == "fp32":
                writer.add_tensor(tensor, values)
            elif kind == "f16":
                writer.add_tensor(tensor, values.astype(np.float16))
            else:
                stored = quants.quantize(values, GGMLQuantizationType.Q8_0)
                writer.add_tensor(tensor, stored, raw_dtype=GGMLQuantizationType.Q8_0)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _tensors(config, tensors) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors under llama.cpp's names, without the padding of the vocabulary, in fp32."""
    for tensor, name in NAMES.items():
        per_layer = "{i}" in name
        for i in range(config.num_layers if per_layer else 1):
            values = tensors[tensor][i] if per_layer else tensors[tensor]
            values = values[: config.vocab_size] if tensor == "wte" else values
            values = values if values.dtype == np.float32 else bfloat16_to_float32(values)
            yield name.format(i=i), np.ascontiguousarray(values, np.float32)
