"""`export --to-gguf`: read back by gguf's own reader; and what llama.cpp writes with it is what we write."""

import math
import re

import numpy as np
import pytest

import llm_mojo
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


def learned(tokenizer, text):
    """A model that knows a text by heart: what it writes is no repetition of one token."""
    config = llm_mojo.GPT2Config(256, tokenizer.vocab_size, 3, 4, 64)
    model, optimizer = llm_mojo.GPT2(config, seed=11, tokenizer=tokenizer), llm_mojo.AdamW(3e-3)
    tokens, random = tokenizer.encode_to_numpy(text), np.random.default_rng(4)
    for _ in range(300):
        batch = np.stack([tokens[place : place + 65] for place in random.integers(len(tokens) - 65, size=4)])
        model.backward(batch[:, :-1], batch[:, 1:])
        model.step(optimizer, grad_clip=1.0)
    return model


@pytest.mark.long
@pytest.mark.engine
@pytest.mark.builds("eval_gpt2.mojo")
@pytest.mark.parametrize("vocabulary", ["gpt2", "own"])
def test_llama_cpp_writes_what_we_write(vocabulary, mojo_program, tmp_path, gpt2_files, documents):
    """Greedy tokens, 100 for each of five prompts, in fp32; and the perplexity of q8_0 within 1%."""
    llama_cpp = pytest.importorskip("llama_cpp")
    text = "\n".join(documents)[:400_000]
    start = text[20_000:22_000]
    tokenizer = llm_mojo.Tokenizer.load("gpt2") if vocabulary == "gpt2" else llm_mojo.Tokenizer.train([text], 1000)
    trained = learned(tokenizer, start)
    trained.save(tmp_path / "m.bin")
    export(tmp_path)

    def llama(name):
        return llama_cpp.Llama(str(tmp_path / name), n_ctx=256, logits_all=True, verbose=False, n_threads=2)

    model = llama("m.gguf")
    different = set()
    for prompt in [start[:40], start[700:730], "def main():\n    ", "naïve café", "  two spaces"]:
        ids = model.tokenize(prompt.encode(), add_bos=False, special=False)
        assert ids == tokenizer.encode(prompt)
        ours = trained.generate([ids], 100, temperature=0)[0].tokens
        theirs = []
        model.reset()
        model.eval(ids)
        while len(theirs) < 100 and tokenizer.end_of_text not in theirs:
            theirs.append(int(np.argmax(model.scores[len(ids) + len(theirs) - 1])))
            model.eval(theirs[-1:])
        assert theirs == ours
        different |= set(ours)
    assert len(different) > 20
    ids = model.tokenize(text.encode())[:256]

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
