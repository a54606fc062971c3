"""sample_gpt2.mojo: greedy texts against transformers' generate, endings, several texts, mistakes, and a session."""

import codecs
import os
import re
import select
import shutil
import signal
import subprocess
import termios
import time

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from llm_mojo import formats, reference
from llm_mojo.__main__ import main
from llm_mojo.formats import ModelConfig
from llm_mojo.weights import SOURCES
from mojo_programs import ENVIRONMENT, Program, wait_for
from tiny_run import settings

EOT = 256
BYTES = [bytes([i]) for i in range(256)] + [b"<|endoftext|>"]
PROMPTS = ["a", "the quick", "Hello, world", "def f(x):", "1 2 3 4", "ZZZZ", "\n", "Grüße", "日本", "x" * 50]
TEXT = "Grüße aus 東京 🙂!\nA naïve café, and so on: 12, 13, 14.\n"


class SampleProgram(Program):
    """The program; on one thread unless a test says otherwise, as threads of tiny models mostly wait for each other."""

    def run(self, *arguments, **options):
        threads = [] if "--threads" in arguments else ["--threads", 1]
        return super().run(*arguments, *threads, **options)


@pytest.fixture(scope="session")
def program(mojo_program):
    return SampleProgram(mojo_program("sample_gpt2.mojo").path)


@pytest.fixture(scope="module")
def random_model(tmp_path_factory):
    """A GPT2LMHeadModel with random weights, saved by transformers and converted by our command."""
    folder = tmp_path_factory.mktemp("random")
    torch.manual_seed(4)
    config = GPT2Config(vocab_size=257, n_positions=256, n_embd=48, n_layer=3, n_head=4, initializer_range=0.3)
    model = GPT2LMHeadModel(config).eval()
    model.save_pretrained(folder / "saved")
    assert not main(["weights", str(folder / "saved"), "--out", str(folder / "model.bin")])
    formats.write_tokenizer(folder / "tokenizer.bin", BYTES, EOT)
    return folder / "model.bin", model


@pytest.fixture(scope="module")
def endless(random_model, tmp_path_factory):
    """The random model with a vocabulary that has no end-of-text, so that only a signal ends its texts."""
    folder = tmp_path_factory.mktemp("endless")
    formats.write_tokenizer(folder / "tokenizer.bin", BYTES, None)
    shutil.copy(random_model[0], folder / "model.bin")
    return folder / "model.bin"


@pytest.fixture(scope="module")
def run(mojo_program, tmp_path_factory):
    """The folder of a run of our trainer that has learned TEXT by heart."""
    folder = tmp_path_factory.mktemp("run")
    tokens = np.asarray(([EOT, *TEXT.encode()]) * 60)
    formats.write_tokens(folder / "text_train.bin", tokens)
    formats.write_tokens(folder / "text_val.bin", tokens)
    formats.write_tokenizer(folder / "tokenizer.bin", BYTES, EOT)
    sizes = ["--n-layer", 2, "--n-head", 2, "--n-embd", 32, "-b", 8, "-t", 80, "-x", 300, "-l", 1e-2]
    data = ["-i", folder / "text_train.bin", "-j", folder / "text_val.bin"]
    schedule = ["-k", "cosine", "-q", 0, "--shuffle", 2]
    mojo_program("train_gpt2.mojo").output(*data, *sizes, *schedule, "-v", 0, "-s", 0, "-o", folder / "out")
    return folder / "out"


def transformers_model(checkpoint):
    """The same model for transformers, its tensors turned back by hand."""
    config, tensors = formats.read_checkpoint(checkpoint)
    names = ("n_positions", "n_layer", "n_head", "n_embd")
    sizes = dict(zip(names, (config.max_seq_len, config.num_layers, config.num_heads, config.channels)))
    model = GPT2LMHeadModel(GPT2Config(vocab_size=config.vocab_size, **sizes)).eval()
    state = {}
    for tensor, (name, transposed) in SOURCES.items():
        values = torch.tensor(np.array(tensors[tensor]))
        for i in range(config.num_layers if "{i}" in name else 1):
            value = values[i] if "{i}" in name else values[: config.vocab_size] if tensor == "wte" else values
            state["transformer." + name.format(i=i)] = value.T if transposed else value
    state["lm_head.weight"] = state["transformer.wte.weight"]
    model.load_state_dict(state, strict=True)
    return model


def shown(tokens):
    """What a screen gets to see of bytes: no control characters, U+FFFD for what is not UTF-8."""
    text = b"".join(BYTES[token] for token in tokens).decode(errors="replace")
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", "", text)


def generated(model, prompt, count):
    """The prompt and transformers' greedy continuation, up to its end-of-text token."""
    tokens = torch.tensor([list(prompt.encode())])
    settings = dict(do_sample=False, max_new_tokens=count, eos_token_id=EOT, pad_token_id=EOT)
    tokens = model.generate(tokens, attention_mask=torch.ones_like(tokens), **settings)[0, tokens.shape[1] :].tolist()
    return prompt + shown(token for token in tokens if token != EOT)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_text_is_that_of_transformers(prompt, program, random_model):
    path, model = random_model
    text = program.output("-e", path, "-p", prompt, "-n", 200, "--temperature", 0)
    assert text == generated(model, prompt, 200) + "\n"


def test_greedy_text_of_a_trained_model(program, run):
    [path] = run.glob("model_00000300.bin")
    model = transformers_model(path)
    for start in range(0, len(TEXT) - 5, 5):
        prompt = TEXT[start : start + 5]
        text = program.output("-e", run, "-p", prompt, "-n", 60, "--temperature", 0)
        assert text == generated(model, prompt, 60) + "\n"


# ----- where texts end, and what is shown of them


def test_a_text_stops_at_end_of_text(program, run):
    assert program.output("-e", run, "-p", TEXT[:10], "--temperature", 0) == TEXT + "\n"


@pytest.mark.parametrize("stop", ["京", "🙂!\n", " and so on", "12, 14", "\n"])
def test_stop(stop, program, run):
    text = program.output("-e", run, "-p", TEXT[:2], "--temperature", 0, "--stop", stop)
    assert text == TEXT.partition(stop)[0] + "\n"


@pytest.mark.parametrize("count", range(1, 9))
def test_a_character_that_is_cut_off(count, program, run):
    """The tokens after "aus " are single bytes of characters."""
    start = TEXT.index("東")
    text = program.output("-e", run, "-p", TEXT[:start], "-n", count, "--temperature", 0)
    assert text == TEXT[:start] + TEXT[start:].encode()[:count].decode(errors="replace") + "\n"


def test_what_is_streamed_is_whole_characters(program, run):
    command = [str(word) for word in [program.path, "-e", run, "-p", "G", "--temperature", 0]]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT)
    pieces = []
    while piece := os.read(process.stdout.fileno(), 65536):
        pieces.append(piece.decode())
    process.wait()
    assert "".join(pieces) == TEXT + "\n"


def test_where_the_prompt_comes_from(program, run, tmp_path):
    settings = ["-e", run, "--temperature", 0]
    assert program.output(*settings, input=TEXT[:8]) == TEXT + "\n"
    # One newline at the end is the editor's, more are the writer's.
    assert program.output(*settings, input=TEXT[:8] + "\n") == TEXT + "\n"
    line = TEXT.index("\n") + 1
    assert program.output(*settings, input=TEXT[:line] + "\n") == TEXT + "\n"
    (tmp_path / "prompt.txt").write_text(TEXT[:12] + "\n")
    assert program.output(*settings, "--prompt-file", tmp_path / "prompt.txt", input="other") == TEXT + "\n"


def test_an_empty_prompt_starts_a_text(program, run):
    for more in [{"input": ""}, {"input": "\n"}]:
        assert program.output("-e", run, "--temperature", 0, **more) == TEXT + "\n"
    assert program.output("-e", run, "--temperature", 0, "-p", "") == TEXT + "\n"
    assert program.output("-e", run, "--temperature", 0, "-p", "<|endoftext|>") == "<|endoftext|>" + TEXT + "\n"


# ----- several texts


@pytest.mark.parametrize("more", [[], ["--top-k", 20], ["--top-p", 0.9], ["--dtype", "bf16"], ["-n", 600]])
def test_each_of_several_texts_is_the_one_of_its_seed(more, program, random_model):
    settings = ["-e", random_model[0], "-p", "To be", "-n", 100, "--temperature", 1.5, *more]
    texts = program.output(*settings, "-s", 5, "--seed", 7, "--threads", 1)
    alone = [program.output(*settings, "--seed", 7 + i, "--threads", 3) for i in range(5)]
    assert texts == "---\n".join(alone)
    assert len(set(alone)) == 5


def test_texts_that_end_leave_the_others_alone(program, run):
    settings = ["-e", run, "-p", "", "--temperature", 1.2, "-n", 100]
    texts = program.output(*settings, "-s", 8)
    alone = [program.output(*settings, "--seed", 1337 + i) for i in range(8)]
    assert texts == "---\n".join(alone)
    assert len({len(text) for text in alone}) > 2


# ----- the context


def windowed(tensors, config, tokens, count):
    """Greedy choices where a full context is replaced by its newer half; computed anew for every token."""
    tensors = {name: torch.tensor(np.array(tensor)) for name, tensor in tensors.items()}
    half = config.max_seq_len // 2 + 1
    window = tokens if len(tokens) <= config.max_seq_len else tokens[-half:]
    new = []
    for _ in range(count):
        if len(window) > config.max_seq_len:
            window = window[-half:]
        with torch.no_grad():
            logits = reference.forward(tensors, config, torch.tensor([window]))[0]
        new.append(int(logits[0, -1].argmax()))
        window = [*window, new[-1]]
    return new


@pytest.mark.parametrize("length", [1, 2, 7, 16])
def test_beyond_the_context(length, program, tmp_path):
    config = ModelConfig(max_seq_len=length, vocab_size=256, num_layers=2, num_heads=2, channels=16)
    tensors = reference.init_tensors(config, 2, spread=True)
    formats.write_checkpoint(tmp_path / "model.bin", config, tensors)
    formats.write_tokenizer(tmp_path / "tokenizer.bin", BYTES[:256], None)
    for prompt in ["a", "abcdefg", "what is longer than all of it"]:
        result = program.run("-e", tmp_path / "model.bin", "-p", prompt, "-n", 60, "--temperature", 0)
        expected = windowed(tensors, config, list(prompt.encode()), 60)
        assert result.stdout == prompt + shown(expected) + "\n"
        assert result.stderr.count(f"beyond the context of {length} tokens the older half was dropped") == 1


# ----- what is wrong


def test_tokens_per_second(program, run):
    result = program.run("-e", run, "-p", "x", "-n", 20, "--stop", "no such text")
    assert re.fullmatch(r"\(\d+ tokens, \d+\.\d tok/s\)\n", result.stderr)


def test_models_that_are_not_there(program, run, tmp_path):
    def error(*arguments):
        return program.error(*arguments, "-p", "x", cwd=tmp_path)

    assert "gpt2_124M.bin is not here; `python -m llm_mojo weights gpt2`" in error()
    assert "gpt2_1558M.bin is not here; `python -m llm_mojo weights gpt2-xl`" in error("-e", "gpt2-xl")
    assert "cannot open nowhere.bin: No such file" in error("-e", "nowhere.bin")
    assert "no checkpoint in this folder" in error("-e", tmp_path)
    for name in "a", "b":
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "DONE_00000300").touch()
    assert "runs/c is not here; the runs with a checkpoint: runs/a, runs/b" in error("-e", "runs/c")
    (tmp_path / "alone.bin").write_bytes((run / "model_00000300.bin").read_bytes())
    assert "no tokenizer beside alone.bin; name the one" in error("-e", "alone.bin")


def test_a_published_model_that_is_there(program, run, tmp_path):
    (tmp_path / "gpt2_355M.bin").write_bytes((run / "model_00000300.bin").read_bytes())
    formats.write_tokenizer(tmp_path / "gpt2_tokenizer.bin", BYTES, EOT)
    text = program.output("-e", "gpt2-medium", "-p", TEXT[:9], "--temperature", 0, cwd=tmp_path)
    assert text == TEXT + "\n"


def test_the_wrong_tokenizer(program, run, tmp_path):
    formats.write_tokenizer(tmp_path / "tokenizer.bin", BYTES[:256], None)
    error = program.error("-e", run, "--tokenizer", tmp_path / "tokenizer.bin", "-p", "x")
    assert "is not the one that" in error and "give that one with --tokenizer" in error


@pytest.mark.parametrize("tensor", ["wte", "lnfb", "fcw"])
def test_weights_that_are_not_numbers(tensor, program, run, tmp_path):
    config, tensors = formats.read_checkpoint(run / "model_00000300.bin")
    tensors = {name: np.array(values) for name, values in tensors.items()}
    tensors[tensor].flat[5] = np.nan
    formats.write_checkpoint(tmp_path / "model.bin", config, tensors)
    tokenizer = run.parent / "tokenizer.bin"
    for more in [[], ["--temperature", 0], ["--dtype", "bf16"], ["-s", 3]]:
        error = program.error("-e", tmp_path / "model.bin", "--tokenizer", tokenizer, "-p", "some text", *more)
        assert re.search(r"the logit of token \d+ is nan; the model has diverged", error)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--temperature", -1], "--temperature: expected a number of at least 0.0, got '-1'"),
        (["--temperature", "nan"], "--temperature: expected a number of at least 0.0, got 'nan'"),
        (["--top-p", 1.1], "--top-p: expected a number from 0.0 to 1.0, got '1.1'"),
        (["--top-p", -0.1], "--top-p: expected a number from 0.0 to 1.0, got '-0.1'"),
        (["--top-k", -1], "--top-k: expected an integer of at least 0, got '-1'"),
        (["-s", 0], "--num-samples: expected an integer of at least 1, got '0'"),
        (["--dtype", "fp16"], "--dtype: expected fp32|bf16, got 'fp16'"),
    ],
)
def test_wrong_flags(flags, message, program, run):
    assert message in program.error("-e", run, "-p", "x", *flags, status=2)


def test_top_p_0_takes_the_most_likely(program, random_model):
    settings = ["-e", random_model[0], "-p", "y", "-n", 50]
    assert program.output(*settings, "--top-p", 0) == program.output(*settings, "--temperature", 0)


def test_ctrl_c_ends_a_text(program, endless):
    command = [program.path, "-e", endless, "-p", "x", "-n", "100000000", "--temperature", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT)
    os.read(process.stdout.fileno(), 1)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and output.endswith(b"\n") and b"tok/s" in errors


# ----- a session


class Session:
    """The program on a terminal of its own."""

    def __init__(self, program, *arguments):
        self.terminal, other_end = os.openpty()
        command = [str(word) for word in [program.path, *arguments]]
        ends = {"stdin": other_end, "stdout": other_end, "stderr": other_end}
        self.process = subprocess.Popen(command, **ends, env=ENVIRONMENT, start_new_session=True)
        os.close(other_end)
        self.decode = codecs.getincrementaldecoder("utf-8")().decode
        self.screen = ""

    def until(self, text):
        """Waits until a text has been shown since the last call, and returns what was shown before it."""
        while text not in self.screen:
            self.look(text)
        before, _, self.screen = self.screen.partition(text)
        return before

    def some(self):
        """Waits until something is shown, and returns it."""
        while not self.screen:
            self.look("something")
        return self.screen

    def look(self, expected):
        """Waits until more is shown; a read may end within a character or a line end."""
        assert select.select([self.terminal], [], [], 60)[0], f"{expected!r} never came, but {self.screen!r}"
        shown = (self.screen + self.decode(os.read(self.terminal, 65536))).replace("\r\n", "\n")
        self.screen = re.sub(r"\r?\x1b\[[0-9;?]*[A-Za-z]", "", shown)

    def type(self, text):
        os.write(self.terminal, text.encode())


@pytest.fixture
def session(program):
    sessions = []

    def start(*arguments):
        sessions.append(Session(program, *arguments))
        return sessions[-1]

    yield start
    for one in sessions:
        one.process.kill()
        one.process.wait()
        os.close(one.terminal)


def test_a_session(session, run):
    talk = session("-e", run, "--temperature", 0, "-n", 10)
    assert "Ctrl-D ends" in talk.until("> ")
    talk.type("A naïve\n")
    talk.until("A naïve\n")
    assert talk.until("\n(10 tokens") == " café, an"
    talk.until("> ")
    # Enter goes on where the text was.
    talk.type("\n")
    assert talk.until("\n(10 tokens") == "\nd so on: 1"
    talk.until("> ")
    # Another line starts another text.
    talk.type("Gr\n")
    talk.until("Gr\n")
    assert talk.until("\n(10 tokens") == "üße aus "
    talk.until("> ")
    talk.type("\x04")
    assert talk.process.wait(timeout=60) == 0


@pytest.mark.parametrize(
    "keys",
    [
        "xGr\x01\x04\n",  # Ctrl-A, Ctrl-D
        "xGr\x1b[H\x1b[3~\n",  # Home, Delete
        "Grü\x7f\n",
        "r\x1b[DG\n",
        "Gr und mehr\x17\x17\x7f\n",  # Ctrl-W
        "weg\x15Gr\n",
        "Grweg\x1b[D\x1b[D\x1b[D\x0b\n",
        "\x1b[200~Gr\x1b[201~\n",
        "weg\x1b[A\x1b[BGr\x01\x1b[3~\x1b[3~\x1b[3~\n",
    ],
    ids=["home", "Home", "backspace", "left", "words", "to the start", "to the end", "paste", "no history"],
)
def test_a_line_is_edited(keys, session, run):
    talk = session("-e", run, "--temperature", 0, "-n", 10)
    talk.until("> ")
    talk.type(keys)
    talk.until("Gr\n")
    assert talk.until("\n(10 tokens") == "üße aus "


def test_earlier_lines_come_back(session, run):
    talk = session("-e", run, "--temperature", 0, "-n", 10)
    for keys, line, answer in [
        ("A naïve\n", "A naïve\n", " café, an"),
        ("Gr\n", "Gr\n", "üße aus "),
        ("\x1b[A\x1b[A\n", "A naïve\n", " café, an"),
        ("\x1b[A\x1b[A\x1b[B\x1b[B\x1b[A\x10\n", "Gr\n", "üße aus "),
    ]:
        talk.until("> ")
        talk.type(keys)
        talk.until(line)
        assert talk.until("\n(10 tokens") == answer


def test_a_long_paste_is_one_prompt(session, run):
    """A terminal's own editing ends a line at 4,095 bytes, and at each new line."""
    talk = session("-e", run, "--temperature", 0, "-n", 10)
    talk.until("> ")
    talk.type("\x1b[200~" + "so on and on\n" * 1000)
    talk.type("Gr\x1b[201~\n")
    talk.until("Gr\n")
    talk.until("\n(10 tokens")
    talk.until("> ")
    talk.type("\x04")
    assert talk.process.wait(timeout=60) == 0


def test_an_unknown_character_is_answered(session, mojo_program, data, tmp_path):
    mojo_program("train_gpt2.mojo").output(*settings(data, tmp_path / "run"))
    talk = session("-e", tmp_path / "run", "-n", 3)
    for _ in range(2):
        talk.until("> ")
        talk.type("(é)\n")
        talk.until("(é)\n")
        assert "character 'é' (U+00E9) at position 0 (line 1) is not among the 60" in talk.until("\n")
    talk.until("> ")
    talk.type("()\n")
    talk.until("(3 tokens")


def test_ctrl_c_in_a_session(session, endless):
    talk = session("-e", endless, "-n", 100_000_000, "--temperature", 0)
    for _ in range(2):
        talk.until("> ")
        talk.type("hello\n")
        talk.until("hello\n")
        talk.until(talk.some())
        talk.process.send_signal(signal.SIGINT)
        talk.until(" tok/s")
    # At the prompt it only starts a new one.
    talk.until("> ")
    for _ in range(2):
        # A signal before the program waits for input does nothing.
        while not select.select([talk.terminal], [], [], 0.2)[0]:
            talk.process.send_signal(signal.SIGINT)
        talk.until("> ")
    talk.type("\x04")
    assert talk.process.wait(timeout=60) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("busy", [False, True])
def test_a_session_that_is_ended_leaves_the_terminal_as_it_was(number, busy, session, endless):
    talk = session("-e", endless, "-n", 100_000_000, "--temperature", 0)
    talk.until("> ")
    if busy:
        talk.type("hello\n")
        talk.until("hello\n")
        talk.until(talk.some())
    else:
        # By now it waits for input, with a terminal that echoes nothing by itself.
        wait_for(lambda: not termios.tcgetattr(talk.terminal)[3] & termios.ECHO)
        time.sleep(0.2)
    talk.process.send_signal(number)
    assert talk.process.wait(timeout=60) == 128 + number
    assert termios.tcgetattr(talk.terminal)[3] & termios.ECHO
