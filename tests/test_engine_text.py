"""Tokenizers and generated text in Python: against tiktoken, `sample_gpt2`, the model's own logits, and alone beside together."""

import numpy as np
import pytest
import tiktoken

import llm_mojo
from llm_mojo import formats, generation, tokenize
from test_engine_model import make
from vocabularies import write_toy

pytestmark = pytest.mark.engine
CONFIG = formats.ModelConfig(max_seq_len=24, vocab_size=257, num_layers=2, num_heads=3, channels=36)
TEXTS = [
    "",
    "a",
    "Hello, world!\n",
    "naïve café 漢字 🙂",
    " " * 40 + "x",
    "<|endoftext|>",
    "it's we'll 1234  \n\n",
    "\x00\xff",
]


@pytest.fixture(scope="module")
def byte_model(tmp_path_factory):
    """A random model of bytes, saved, and what it was saved as."""
    model, _ = make(CONFIG, threads=2)
    model.tokenizer = llm_mojo.Tokenizer.load("byte")
    path = tmp_path_factory.mktemp("model") / "bytes.bin"
    model.save(path)
    return model, path


# tokenizers


def test_gpt2s_tokens_are_tiktokens(gpt2_files):
    ours = llm_mojo.Tokenizer.load("gpt2")
    ranks = tokenize.read_bpe(*gpt2_files)
    theirs = tiktoken.Encoding(
        "gpt2", pat_str=tokenize.GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 50256}
    )
    assert len(ours) == 50257 and ours.end_of_text == 50256
    for text in TEXTS:
        tokens = theirs.encode_ordinary(text)
        assert ours.encode(text) == tokens
        assert ours.encode_to_numpy(text).tolist() == tokens
        assert ours.encode(text, allow_special=True) == theirs.encode(text, allowed_special="all")
        assert ours.decode(tokens) == theirs.decode(tokens)
        assert ours.decode_bytes(tokens) == text.encode()
    assert ours.decode(theirs.encode("🙂")[:1]) == "�"
    assert ours.encode("\ud800") == theirs.encode_ordinary("\ud800")


def test_an_own_vocabulary_is_trained_saved_and_read(tmp_path):
    text = "the quick brown fox jumps over the lazy dog, the quick brown fox sleeps. " * 20
    trained = llm_mojo.Tokenizer.train([text], 300)
    assert 257 < len(trained) <= 300 and trained.end_of_text == len(trained) - 1
    tokens = trained.encode(text)
    assert len(tokens) < len(text) / 2 and trained.decode(tokens) == text
    trained.save(tmp_path / "tokenizer.bin")
    assert llm_mojo.Tokenizer.load(tmp_path).encode(text) == tokens
    assert list(tokenize.read_tokenizer_file(tmp_path).encode([(text, False)])) == tokens


def test_characters_that_a_vocabulary_does_not_have_are_an_error(tmp_path):
    formats.write_tokenizer(tmp_path / "tokenizer.bin", [b"a", b"b", "é".encode()], None)
    characters = llm_mojo.Tokenizer(tmp_path / "tokenizer.bin")
    assert characters.encode("abé") == [0, 1, 2] and characters.end_of_text is None
    with pytest.raises(ValueError, match="'c'.*not among the 3 characters"):
        characters.encode("abc")
    with pytest.raises(ValueError, match="from 0 to 2, found 3"):
        characters.decode([3])
    with pytest.raises(ValueError, match="expected text, got int"):
        characters.encode(5)


@pytest.mark.parametrize("content", [b"", b"x" * 3000])
def test_damaged_tokenizers_are_errors(content, tmp_path):
    (tmp_path / "tokenizer.bin").write_bytes(content)
    with pytest.raises(llm_mojo.Error, match="tokenizer"):
        llm_mojo.Tokenizer(tmp_path / "tokenizer.bin")
    with pytest.raises(llm_mojo.Error, match="none.bin"):
        llm_mojo.Tokenizer(tmp_path / "none.bin")


# text


@pytest.mark.parametrize(
    "flags", [["--temperature", 0], ["--top-k", 5], ["--temperature", 1.5, "--top-p", 0.9], ["--seed", 7, "-n", 60]]
)
def test_text_is_that_of_sample_gpt2(flags, byte_model, mojo_program):
    """Beyond the context too, where the older half is dropped."""
    model, path = byte_model
    said = mojo_program("sample_gpt2.mojo").run("-e", path, "--prompt", "Once", "-n", 20, *flags)
    names = {
        "--temperature": "temperature",
        "--top-k": "top_k",
        "--top-p": "top_p",
        "--seed": "seed",
        "-n": "max_tokens",
    }
    settings = {names[flag]: value for flag, value in zip(flags[::2], flags[1::2])}
    text = model.generate("Once", **({"max_tokens": 20} | settings)).text
    # The program leaves control characters out, which a terminal would obey.
    shown = "".join(c for c in text if c in "\t\n\r" or not (ord(c) < 32 or 127 <= ord(c) < 160))
    assert said.stdout == f"Once{shown}\n"


def test_greedy_tokens_and_logprobs_follow_from_the_logits(byte_model):
    model, _ = byte_model
    prompt = [5, 9, 200]
    completion = model.generate([prompt], 12, temperature=0, logprobs=4)[0]
    tokens = prompt + completion.tokens
    logits = model.logits(tokens).astype(np.float64)
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    for i, token in enumerate(completion.tokens):
        row = logs[len(prompt) + i - 1]
        assert token == row.argmax()
        assert completion.logprobs[i] == pytest.approx(row[token], abs=1e-5)
        likeliest = np.argsort(-row, kind="stable")[:4]
        assert [id for id, _ in completion.alternatives[i]] == likeliest.tolist()
        assert [log for _, log in completion.alternatives[i]] == pytest.approx(row[likeliest], abs=1e-5)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_text_is_what_it_is_alone(dtype):
    model, _ = make(CONFIG, dtype=dtype)
    prompts = [[1], [2, 3, 4], list(range(40)), [7] * 23]
    together = model.generate(prompts, 30, n=2, seed=11, logprobs=1)
    for i, completion in enumerate(together):
        alone = model.generate([prompts[i // 2]], 30, seed=11 + i, logprobs=1)[0]
        assert (completion.tokens, completion.logprobs) == (alone.tokens, alone.logprobs)


def test_texts_come_and_go_without_changing_each_other():
    model, _ = make(CONFIG)
    alone = {seed: model.generate([[seed]], 12, seed=seed)[0].tokens for seed in range(5)}
    batch = model.batch(texts=2)
    waiting, found, seeds = list(range(5)), {}, {}
    while waiting or len(batch):
        while waiting and len(batch) < batch.capacity:
            seed = waiting.pop(0)
            seeds[batch.add([seed], seed=seed)] = seed
            found[seed] = []
        for drawn in batch.step():
            found[seeds[drawn.text]].append(drawn.token)
            # They end at different times, so that rooms are used again beside running texts.
            if len(found[seeds[drawn.text]]) == 4 + seeds[drawn.text]:
                batch.remove(drawn.text)
    assert found == {seed: alone[seed][: 4 + seed] for seed in range(5)}
    assert batch.step() == []
    batch.add([1]), batch.add([2])
    with pytest.raises(ValueError, match="at most 2 texts"):
        batch.add([3])
    with pytest.raises(ValueError, match="under way"):
        batch.remove(9)


def test_text_comes_as_it_is_drawn(byte_model):
    model, _ = byte_model
    whole = model.generate("ab", 15, seed=3)
    stream = model.generate("ab", 15, seed=3, stream=True)
    first = next(stream)
    pieces = [first, *stream]
    assert "".join(piece.text for piece in pieces) == whole.text
    assert [piece.drawn.token for piece in pieces] == whole.tokens
    assert [piece.finish_reason for piece in pieces] == [None] * (len(pieces) - 1) + [whole.finish_reason]
    # A stream that nobody reads to its end leaves nothing behind.
    stream = model.generate("ab", 15, stream=True)
    next(stream)
    stream.close()


class Scripted:
    """Stands for a model that writes certain bytes: how text is cut does not depend on the model."""

    def __init__(self, text, stops):
        tokens = llm_mojo.Tokenizer.load("byte")
        self.tokens = tokens.encode(text)
        self.writer = generation.Writer(tokens, stops, len(self.tokens))

    def pieces(self):
        pieces = []
        for token in self.tokens:
            pieces.append(self.writer.push(token))
            if self.writer.finish_reason:
                break
        return pieces


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("one two three", ["two"], "one "),
        ("one two three", ["tw", "e t"], "on"),
        ("one twelve", ["two"], "one twelve"),
        ("one tw", ["two"], "one tw"),
        ("é漢🙂!", ["!"], "é漢🙂"),
        ("aaab", ["aab"], "a"),
        (b"ab\xf0\x9f", [], "ab�"),
    ],
)
def test_a_text_ends_before_a_stop_text(text, stops, expected):
    scripted = Scripted(text, stops)
    assert "".join(scripted.pieces()) == expected
    assert (scripted.writer.finish_reason == "stop") == (expected != (text if isinstance(text, str) else "ab�"))


def test_an_end_of_text_token_ends_a_text(byte_model):
    model, _ = byte_model
    eot = model.tokenizer.end_of_text
    quiet = llm_mojo.GPT2(CONFIG, tokenizer=model.tokenizer)
    quiet.load_parameters(
        {"lnfw": np.zeros(36), "lnfb": np.ones(36), "wte": np.eye(257, 36) * 0 + (np.arange(257) == eot)[:, None]}
    )
    completion = quiet.generate("x", 10, temperature=0)
    assert (completion.text, completion.finish_reason, completion.tokens) == ("", "stop", [eot])


WRONG = {
    "temperature": (dict(temperature=-1), "temperature: expected a finite number of at least 0"),
    "a temperature that is no number": (dict(temperature=float("nan")), "temperature: expected a finite number"),
    "top_p": (dict(top_p=1.5), "top_p: expected a finite number from 0 to 1"),
    "top_k": (dict(top_k=-1), "top_k: expected an integer of at least 0"),
    "stop": (dict(stop=""), "stop: expected text that is not empty"),
    "stop of numbers": (dict(stop=[1]), "stop: expected text"),
    "n": (dict(n=0), "n: expected an integer from 1"),
    "logprobs": (dict(logprobs=-1), "logprobs: expected an integer from 0"),
    "seed": (dict(seed="x"), "seed: expected an integer"),
    "max_tokens": (dict(max_tokens=-1), "max_tokens: expected an integer of at least 0"),
    "no prompts": (dict(prompts=[]), "prompts: expected at least one"),
    "an unknown token": (dict(prompts=[[257]]), "from 0 to 256, found 257"),
}


@pytest.mark.parametrize("name", WRONG)
def test_settings_that_make_no_sense_are_value_errors(name, byte_model):
    model, _ = byte_model
    settings, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        model.generate(**({"prompts": "a", "max_tokens": 2} | settings))


def test_no_tokens_and_empty_prompts(byte_model):
    model, _ = byte_model
    assert model.generate("a", 0).text == ""
    assert len(model.generate("", 3).tokens) == 3


def test_toy_vocabulary_by_folder(tmp_path):
    write_toy(tmp_path / "gpt2")
    with pytest.raises(llm_mojo.Error, match="tokenizer.bin"):
        llm_mojo.Tokenizer.load(tmp_path / "gpt2")
