"""`export --to-gguf`: read back by gguf's own reader; and what llama.cpp writes with it is what we write."""

import math
import re

import numpy as np
import pytest

from llm_mojo import formats, gguf_export, reference
from llm_mojo.__main__ import main
from llm_mojo.gguf_export import NAMES
from test_export import BPE, CHARACTERS, VOCABULARIES

gguf = pytest.importorskip("gguf")
SIZES = (32, 2, 2, 32)


def make_model(folder, tokens, eot, sizes=SIZES, dtype="float32", seed=2):
    """Writes m.bin and m_tokenizer.bin for a context, layers, heads and a width."""
    T, L, NH, C = sizes
    config = formats.ModelConfig(T, len(tokens), L, NH, C)
    tensors = reference.init_tensors(config, seed=seed, spread=True)
    formats.write_checkpoint(folder / "m.bin", config, tensors, dtype)
    formats.write_tokenizer(folder / "m_tokenizer.bin", tokens, eot)
    return config, tensors


def export(folder, kind="fp32", name="m.gguf"):
    assert main(["export", str(folder / "m.bin"), "--to-gguf", str(folder / name), "--gguf-type", kind]) == 0
    return gguf.GGUFReader(folder / name)


@pytest.mark.parametrize("kind", gguf_export.TYPES)
def test_the_tensors_are_ours(kind, tmp_path):
    config, tensors = make_model(tmp_path, BPE, 309)
    found = {tensor.name: tensor for tensor in export(tmp_path, kind).tensors}
    expected = {}
    for name, theirs in NAMES.items():
        values = tensors[name][: config.vocab_size] if name == "wte" else tensors[name]
        for i in range(config.num_layers if "{i}" in theirs else 1):
            expected[theirs.format(i=i)] = values[i] if "{i}" in theirs else values
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        got = gguf.quants.dequantize(found[name].data, found[name].tensor_type)
        if kind == "fp32" or values.ndim == 1 or name == "position_embd.weight":
            assert np.array_equal(got, values)
        elif kind == "f16":
            assert np.array_equal(got, values.astype(np.float16).astype(np.float32))
        else:
            # A block of 32 numbers is kept in steps of its largest one's 127th part.
            blocks = np.abs(values).reshape(-1, 32).max(axis=1, keepdims=True)
            assert (np.abs(got.reshape(-1, 32) - values.reshape(-1, 32)) <= 0.51 * blocks / 127 + 1e-3 * blocks).all()


def test_the_vocabulary_and_the_sizes(tmp_path):
    make_model(tmp_path, BPE, 309)
    reader = export(tmp_path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "gpt2" and fields["tokenizer.ggml.model"] == "gpt2"
    assert (fields["gpt2.context_length"], fields["gpt2.block_count"], fields["gpt2.embedding_length"]) == (32, 2, 32)
    assert (fields["gpt2.attention.head_count"], fields["gpt2.feed_forward_length"]) == (2, 128)
    assert fields["tokenizer.ggml.bos_token_id"] == fields["tokenizer.ggml.eos_token_id"] == 309
    assert len(fields["tokenizer.ggml.tokens"]) == 310 and fields["tokenizer.ggml.tokens"][309] == "<|endoftext|>"
    assert len(fields["tokenizer.ggml.merges"]) == 310 - 256 - 1
    assert "trained with llm.mojo" in fields["general.description"]


@pytest.mark.parametrize("kind", ["char", "byte"])
def test_what_llama_cpp_cannot_express_is_refused(kind, tmp_path, capsys):
    tokens, eot, _ = VOCABULARIES[kind]
    make_model(tmp_path, tokens, eot)
    assert main(["export", str(tmp_path / "m.bin"), "--to-gguf", str(tmp_path / "m.gguf")]) == 1
    error = capsys.readouterr().err
    assert "which llama.cpp's tokenizers cannot express; export for transformers with --to" in error
    assert not (tmp_path / "m.gguf").exists() and len(CHARACTERS) > 1


def test_mistakes(tmp_path, capsys):
    make_model(tmp_path, BPE, 309, sizes=(32, 2, 2, 24))
    flags = ["export", str(tmp_path / "m.bin")]
    assert main([*flags, "--to-gguf", str(tmp_path / "m.gguf"), "--gguf-type", "q8_0"]) == 1
    assert "q8_0 has blocks of 32 numbers, this model is 24 wide" in capsys.readouterr().err
    assert main(flags) == 1
    assert "expected --to DIR (for transformers) or --to-gguf FILE" in capsys.readouterr().err
    (tmp_path / "mine").write_text("mine")
    assert main([*flags, "--to-gguf", str(tmp_path / "mine")]) == 1
    assert "is there and is no GGUF file; --force replaces it" in capsys.readouterr().err
    assert main([*flags, "--to-gguf", str(tmp_path)]) == 1
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.long
@pytest.mark.builds("sample_gpt2.mojo", "eval_gpt2.mojo")
@pytest.mark.parametrize("vocabulary", ["gpt2", "own"])
def test_llama_cpp_writes_what_we_write(vocabulary, mojo_program, tmp_path, gpt2_files, documents):
    """Greedy text of 100 tokens for five prompts in fp32; and the perplexity of q8_0 within 1%."""
    llama_cpp = pytest.importorskip("llama_cpp")
    from llm_mojo import tokenize

    if vocabulary == "gpt2":
        tokenizer = tokenize.gpt2_tokenizer()
        tokens, eot = tokenizer.tokens, tokenizer.eot
    else:
        tokens, eot, _ = VOCABULARIES["bpe"]
    make_model(tmp_path, tokens, eot, sizes=(256, 3, 4, 64), seed=11)
    export(tmp_path)
    sample = mojo_program("sample_gpt2.mojo")

    def llama(name):
        return llama_cpp.Llama(str(tmp_path / name), n_ctx=256, logits_all=True, verbose=False, n_threads=2)

    model = llama("m.gguf")
    for prompt in ["The meaning of life is", "def main():\n    ", "naïve café", "  two spaces", "1, 2, 3"]:
        ours = sample.output("-e", tmp_path / "m.bin", "-p", prompt, "-n", 100, "--temperature", 0)
        ids = model.tokenize(prompt.encode(), add_bos=False, special=False)
        for _ in range(100):
            if len(ids) == 0:
                break
            model.reset()
            model.eval(ids)
            ids = [*ids, int(np.argmax(model.scores[len(ids) - 1]))]
            if ids[-1] == eot:
                ids.pop()
                break
        # sample_gpt2 shows no control characters.
        theirs = re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "", model.detokenize(ids).decode(errors="replace"))
        assert theirs == ours.removesuffix("\n")
    ids = model.tokenize(documents[0].text.encode() if hasattr(documents[0], "text") else str(documents[0]).encode())[
        :256
    ]

    def perplexity(model):
        model.reset()
        model.eval(ids)
        scores = model.scores[: len(ids) - 1].astype(np.float64)
        scores -= scores.max(axis=1, keepdims=True)
        chosen = scores[np.arange(len(ids) - 1), ids[1:]]
        return math.exp((np.log(np.exp(scores).sum(axis=1)) - chosen).mean())

    formats.write_tokens(tmp_path / "text.bin", ids)
    evaluated = mojo_program("eval_gpt2.mojo").output("-e", tmp_path / "m.bin", "-j", tmp_path / "text.bin", "-t", 255)
    ours = float(re.search(r"perplexity ([\d.,]+)", evaluated)[1].replace(",", ""))
    assert perplexity(model) == pytest.approx(ours, rel=1e-3)
    export(tmp_path, "q8_0", "q.gguf")
    assert perplexity(llama("q.gguf")) == pytest.approx(ours, rel=0.01)
