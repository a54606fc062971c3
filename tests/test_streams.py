"""Standard streams that are closed, full, or whose reader has gone; and what may never reach a terminal raw."""

import os
import re
import shlex
import signal
import subprocess

import pytest

from llm_mojo import formats
from mojo_programs import ENVIRONMENT, TIMEOUT
from tiny_run import checkpoints, settings

NAMES = ["train_gpt2", "train_gpt2_basic", "sample_gpt2", "eval_gpt2", "test_gpt2", "tokenize_text"]
ENDLESS = ["-x", 1_000_000_000, "-v", 0]
LONG = ["-x", 100_000, "-v", 0]


@pytest.fixture(scope="session")
def programs(mojo_program):
    trainers = [mojo_program("train_gpt2.mojo"), mojo_program("train_gpt2_basic.mojo")]
    others = [mojo_program("sample_gpt2.mojo"), mojo_program("eval_gpt2.mojo"), mojo_program("test_gpt2.mojo")]
    return dict(zip(NAMES, [*trainers, *others, mojo_program("tokenize_text.mojo")]))


@pytest.fixture(scope="session")
def program(programs):
    return programs["train_gpt2"]


def shell(program, redirection, *arguments, **options):
    """Runs a program below a shell that redirects its streams as users do."""
    words = shlex.join(str(word) for word in [program.path, *arguments])
    pipes = {"capture_output": True, "text": True, "env": ENVIRONMENT, "timeout": TIMEOUT, "errors": "replace"}
    return subprocess.run(["bash", "-c", f"{words} {redirection}"], **(pipes | options))


def started(program, arguments, **options):
    """Starts a run whose standard output is a pipe; returns it and the reading end once it has taken a step."""
    reader, writer = os.pipe()
    command = [str(word) for word in [program.path, *arguments]]
    process = subprocess.Popen(command, stdout=writer, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, **options)
    os.close(writer)
    seen = b""
    while not re.search(rb"\nstep +\d+/", seen):
        seen += os.read(reader, 65536)
    return process, reader


# ----- closed and full


@pytest.mark.parametrize("name", NAMES)
def test_output_that_is_lost_is_an_error(name, programs):
    for redirection, why in ((">&-", "Bad file descriptor"), ("> /dev/full", "No space left")):
        for flag in ("--help", "--version"):
            result = shell(programs[name], redirection, flag)
            assert result.returncode == 1 and why in result.stderr
    assert shell(programs[name], "2>&-", "--nonsense", "x").returncode == 2
    assert shell(programs[name], "<&- 2>&-", "--version").returncode == 0
    assert shell(programs[name], "<&- >&- 2>&-", "--help").returncode == 1


def test_a_run_without_a_screen_does_not_begin(program, data, tmp_path):
    for redirection in (">&-", "> /dev/full", ">&- 2>&- <&-"):
        assert shell(program, redirection, *settings(data, tmp_path / "run")).returncode == 1
        assert not (tmp_path / "run").exists()
    assert shell(program, "<&-", *settings(data, tmp_path / "run")).returncode == 0


def test_nothing_of_the_screen_gets_into_a_file(programs, data, tmp_path):
    """The first file that a program opens would get the descriptor that is free."""
    (tmp_path / "a.txt").write_text("To be, or not to be. " * 50)
    flags = ["-i", tmp_path / "a.txt", "--tokenizer", byte_tokenizer(tmp_path)]
    programs["tokenize_text"].output(*flags, "-o", tmp_path / "d")
    expected = {path.name: path.read_bytes() for path in (tmp_path / "d").glob("*.bin")}
    result = shell(programs["tokenize_text"], ">&- 2>&- <&-", *flags, "-o", tmp_path / "e", "--name", "d")
    assert result.returncode == 1
    assert {path.name: path.read_bytes() for path in (tmp_path / "e").glob("*.bin")} in ({}, expected)

    programs["train_gpt2"].output(*settings(data, tmp_path / "run"))
    evaluation = ["-e", tmp_path / "run", "-j", data / "val_0.bin", "--json", tmp_path / "out.json"]
    assert shell(programs["eval_gpt2"], ">&-", *evaluation).returncode == 1
    assert not (tmp_path / "out.json").exists() or (tmp_path / "out.json").read_text().startswith('{"model"')
    texts = ["-e", tmp_path / "run", "-n", 5]
    assert shell(programs["sample_gpt2"], "> /dev/full", *texts, "-p", "a").returncode == 1
    error = shell(programs["sample_gpt2"], "<&-", *texts)
    assert error.returncode == 1 and "standard input: cannot read" in error.stderr


# ----- readers who go


def test_ctrl_c_behind_tee(program, data, tmp_path):
    """tee dies of the same Ctrl-C, and before the run has said its last words."""
    out = tmp_path / "run"
    process, reader = started(program, settings(data, out, *ENDLESS))
    os.close(reader)
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=TIMEOUT)[1]
    [step] = checkpoints(out)
    assert process.returncode in (1, 130)
    assert f"after step {step} of 1000000000; go on with: {program.path} -o {out} -y 1\n" in errors
    assert f"\n# To go on with it: {program.path} -o {out} -y 1\n" in (out / "run.toml").read_text()
    program.output("-o", out, "-y", 1, "-x", step + 2)


def test_a_reader_who_goes_ends_the_run_with_a_save(program, data, tmp_path):
    """It is noticed at the next line, of which there are some ninety in all steps: the run has not too many of those. Seventy
    lines are the settings and the first steps."""
    out = tmp_path / "run"
    result = shell(program, "| head -70 > /dev/null; exit ${PIPESTATUS[0]}", *settings(data, out, *LONG))
    assert result.returncode == 1
    [step] = checkpoints(out)
    assert f"standard output: cannot write: Broken pipe: stopped after step {step} of" in result.stderr
    assert formats.read_checkpoint(out / f"model_{step:08}.bin")
    without = shell(program, "| head -70 > /dev/null; exit ${PIPESTATUS[0]}", *settings(data, None, *LONG))
    assert without.returncode == 1 and "nothing was saved: no --out was given" in without.stderr


def test_head_leaves_a_whole_set(programs, tmp_path):
    tokenizer = byte_tokenizer(tmp_path)
    for name in ("old", "new"):
        (tmp_path / name).write_text(f"{name} text " * 2000)
        flags = ["-i", tmp_path / name, "--tokenizer", tokenizer, "--name", "d"]
        programs["tokenize_text"].output(*flags, "-o", tmp_path / f"{name}_set")
    sets = [whole(tmp_path / name) for name in ("old_set", "new_set")]
    for _ in range(10):
        programs["tokenize_text"].output("-i", tmp_path / "old", *flags[2:], "-o", tmp_path / "d")
        shell(programs["tokenize_text"], "| head -1", *flags, "-o", tmp_path / "d")
        assert whole(tmp_path / "d") in sets and (tmp_path / "d/manifest.json").exists()


def whole(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.bin")}


def byte_tokenizer(folder):
    path = folder / "bytes.bin"
    formats.write_tokenizer(path, [bytes([value]) for value in range(256)], None)
    return path


# ----- what a terminal would obey


def test_control_characters_are_spelled(program, data, tmp_path):
    evil = tmp_path / "evil\x1b[2J\x07\x9b.toml"
    evil.write_text('seed = "\x1b]0;title\x07"\n')
    error = program.error("--preset", evil, *settings(data, None), status=2)
    assert "\\x1b]0;title\\x07" in error and "evil\\x1b[2J" in error
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", error)
    (data / "evil").mkdir(exist_ok=True)
    (data / "evil/manifest.json").write_text('{"tokenizer": {"name": "\x1b[31mred", "vocab_size": 7, "sha256": ""}}')
    (data / "evil/t.bin").write_bytes((data / "train_0.bin").read_bytes())
    error = program.error(*settings(data, None, "-i", data / "evil/t.bin"))
    assert "the tokenizer \\x1b[31mred" in error
    assert "\x1b[2J" not in program.output(*settings(data, tmp_path / "out\x1b[2J"))


def test_prompts_come_back_as_samples_do(programs, data, tmp_path):
    programs["train_gpt2"].output(*settings(data, tmp_path / "run"))
    for prompt in (["-p", ")\x1b[2J*"], ["-p", b")\xff*"]):
        command = [programs["sample_gpt2"].path, "-e", tmp_path / "run", "-n", "3", *prompt]
        result = subprocess.run(command, capture_output=True, env=ENVIRONMENT)
        assert b"\x1b" not in result.stdout and b"\x1b" not in result.stderr
        result.stdout.decode()
