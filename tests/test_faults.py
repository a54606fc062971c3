"""Faults from the field: files that others can make or change, names of any bytes, models that are ruined at the end."""

import fcntl
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from llm_mojo import formats, reference
from mojo_programs import ENVIRONMENT, ROOT, TIMEOUT, wait_for
from tiny_run import FLAGS, STEPS, V, checkpoints, copy_back_to, final, flags, settings

ENDLESS = ["-x", 1_000_000_000, "-v", 0]
LEFTOVER = ".0123abcd.llm-mojo.tmp"


@pytest.fixture(scope="session")
def program(mojo_program):
    return mojo_program("train_gpt2.mojo")


@pytest.fixture(scope="session")
def tokenize(mojo_program):
    return mojo_program("tokenize_text.mojo")


@pytest.fixture(scope="session")
def basic(mojo_program):
    return mojo_program("train_gpt2_basic.mojo")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def text_flags(folder, name="text"):
    """The flags that make a set of tokens of a text in `folder`."""
    (folder / name).write_text(f"the {name} that is tokenized\n" * 200)
    formats.write_tokenizer(folder / "bytes.bin", [bytes([value]) for value in range(256)], None)
    return ["-i", folder / name, "-o", folder / "set", "--name", "d", "--tokenizer", folder / "bytes.bin"]


# ----- what is written where


@pytest.mark.parametrize("name", ["log.jsonl", "main.log"])
def test_logs_go_through_no_link(name, program, data, tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(tmp_path / "precious")
    assert f"{name} is a symbolic link" in program.error(*settings(data, tmp_path / "run"))
    assert (tmp_path / "precious").read_text() == "mine"


def test_temporary_files_go_through_no_link(program, tokenize, data, tmp_path):
    (tmp_path / "precious").write_text("mine")
    for folder in ("run", "set"):
        (tmp_path / folder).mkdir()
    for name in ("run/run.toml.tmp", f"run/run.toml{LEFTOVER}", "run/run.toml", "set/d_all.bin.tmp", "set/d_val.bin"):
        (tmp_path / name).symlink_to(tmp_path / "precious")
    program.output(*settings(data, tmp_path / "run"))
    tokenize.output(*text_flags(tmp_path))
    (tmp_path / "set/.lock").unlink()
    (tmp_path / "set/.lock").symlink_to(tmp_path / "precious")
    assert ".lock is a symbolic link" in tokenize.error(*text_flags(tmp_path))
    assert (tmp_path / "precious").read_text() == "mine"


@pytest.mark.parametrize("line", ['out = "{}"', "resume = 0", 'trace = "{}/model_00000003.bin"', 'preset = "x"'])
def test_presets_do_not_say_where_to_write(line, program, data, whole, tmp_path):
    out = copy_back_to(whole, STEPS, tmp_path / "run")
    (tmp_path / "p.toml").write_text(line.format(out) + "\n")
    before = contents(out)
    error = program.error("--preset", tmp_path / "p.toml", *settings(data, None), status=2)
    assert "is for the command line alone" in error and "p.toml, line 1" in error
    assert contents(out) == before


# ----- two at once, and what a kill leaves


def test_a_folder_of_tokens_has_one_writer(tokenize, tmp_path):
    first = text_flags(tmp_path, "first")
    tokenize.output(*first)
    before = contents(tmp_path / "set")
    with open(tmp_path / "set/.lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another process is at work in" in tokenize.error(*text_flags(tmp_path, "second"))
    assert contents(tmp_path / "set") == before
    # Nor does one job replace what another has made, unless it is told to.
    assert "holds the shards of another text" in tokenize.error(*text_flags(tmp_path, "second"))
    assert contents(tmp_path / "set") == before
    tokenize.output(*text_flags(tmp_path, "second"), "--force")
    assert contents(tmp_path / "set") != before


def test_two_writers_at_once_mix_nothing(tokenize, tmp_path):
    sets = []
    for name in ("first", "second"):
        tokenize.output(*text_flags(tmp_path, name), "--force")
        sets.append({name: data for name, data in contents(tmp_path / "set").items() if name.endswith(".bin")})
    for _ in range(5):
        commands = [[tokenize.path, *text_flags(tmp_path, name), "--force"] for name in ("first", "second")]
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True, "env": ENVIRONMENT}
        both = [subprocess.Popen([str(word) for word in command], **pipes) for command in commands]
        errors = [process.communicate(timeout=TIMEOUT)[1] for process in both]
        for process, error in zip(both, errors):
            assert process.returncode == 0 or "another process is at work" in error
        found = {name: data for name, data in contents(tmp_path / "set").items() if name.endswith(".bin")}
        assert found in sets and 0 in [process.returncode for process in both]


def test_a_set_that_is_not_whole_is_not_trained_on(program, tokenize, data, tmp_path):
    """As a kill leaves it between the first shard and the manifest."""
    shutil.copy(data / "train_0.bin", tmp_path / "train_0.bin")
    (tmp_path / f"manifest.json{LEFTOVER}").write_text("{}")
    error = program.error(*settings(data, None, "-i", tmp_path / "train_0.bin"))
    assert "shards of two texts may lie beside each other" in error
    arguments = text_flags(tmp_path)
    (tmp_path / "set").mkdir()
    for name in ("manifest.json", "d_all.bin", "d_train.bin"):
        (tmp_path / "set" / f"{name}{LEFTOVER}").write_text("half")
    tokenize.output(*arguments)
    assert set(contents(tmp_path / "set")) == {".lock", "manifest.json", "d_train.bin", "d_val.bin", "tokenizer.bin"}


def test_a_writer_that_is_at_work_keeps_its_files(tokenize, tmp_path):
    arguments = text_flags(tmp_path)
    (tmp_path / "set").mkdir()
    with open(tmp_path / "set" / f"d_val.bin{LEFTOVER}", "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        tokenize.output(*arguments)
        assert (tmp_path / "set" / f"d_val.bin{LEFTOVER}").exists()


def test_a_folder_made_anew_is_another_run(program, data, tmp_path):
    out = tmp_path / "run"
    command = [str(word) for word in [program.path, *settings(data, out, *ENDLESS)]]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    wait_for(lambda: (out / "log.jsonl").exists() and (out / "log.jsonl").stat().st_size)
    shutil.rmtree(out)
    program.output(*settings(data, out))
    second = contents(out)
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=TIMEOUT)[1]
    assert process.returncode == 1 and "is gone, or another has its name; the run was saved as " in errors
    assert contents(out) == second


def test_checkpoints_that_a_kill_left_half_removed(program, data, whole, tmp_path):
    out = copy_back_to(whole, 6, tmp_path / "run")
    (out / "DONE_00000003").unlink()
    (out / "state_00000003_00000.bin").unlink()
    for name in ("model_00000009.bin", f"model_00000012.bin{LEFTOVER}", f"DONE_00000012{LEFTOVER}"):
        (out / name).write_bytes(b"half")
    (out / "model_of_mine.bin").write_bytes(b"mine")
    program.output("-o", out, "-y", 1, "-x", 6)
    left = {name for name in contents(out) if re.match("model|state|extra|DONE", name)}
    of_six = {"model_00000006.bin", "state_00000006_00000.bin", "extra_00000006.json", "DONE_00000006"}
    assert left == of_six | {"model_of_mine.bin"}


def test_what_was_there_before_the_first_run_stays(program, data, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/model_00000009.bin").write_bytes(b"mine")
    program.output(*settings(data, tmp_path / "run"))
    assert (tmp_path / "run/model_00000009.bin").read_bytes() == b"mine"


# ----- models that are ruined


@pytest.mark.parametrize("validates", [True, False])
def test_the_last_update_ruins_the_model(validates, program, data, tmp_path):
    out = tmp_path / "run"
    program.output(*settings(data, out, "-n", 2, "-nk", 1, *([] if validates else ["-v", 0])))
    good = {name: data for name, data in contents(out).items() if "0000000" in name}
    best = (out / "best.bin").read_bytes() if validates else b""
    error = program.error("-o", out, "-y", 1, "-x", 5, "-l", 1e30)
    assert "the model has diverged" in error
    assert f"{out}/model_00000004.bin is the last checkpoint" in error
    assert {name: data for name, data in contents(out).items() if "0000000" in name} == good
    assert not validates or (out / "best.bin").read_bytes() == best
    assert "nan" not in (out / "log.jsonl").read_text().lower()
    program.output("-o", out, "-y", 1, "-x", 5, "-l", 1e-4)
    assert checkpoints(out) == [5]


def test_every_checkpoint_is_looked_at(program, data, tmp_path):
    """With a checkpoint after each step the ruined one would be the one to go on from."""
    out = tmp_path / "run"
    error = program.error(*settings(data, out, "-x", 50, "-n", 1, "-v", 0, "-l", 1e30, "-u", 0))
    assert "the model has diverged" in error and "no checkpoint was saved before" in error
    assert not checkpoints(out) and not list(out.glob("model*"))


# ----- names and flags


@pytest.mark.parametrize(
    "name", ["my run", "it's", "a\nb\tc", 'q"uote', "d\\n", "[draft]", "caf\xe9", b"lat\xe9in", "-dash"]
)
def test_runs_of_any_name_go_on(name, program, data, tmp_path):
    out = os.path.join(os.fsencode(tmp_path), os.fsencode(name))
    arguments = [os.fsencode(str(word)) for word in settings(data, None, *ENDLESS)]
    command = [os.fsencode(program.path), *arguments, b"-o", out]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT)
    while not process.stdout.readline().startswith(b"step "):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, errors) == (130, b"")
    text = output.decode("utf-8")
    pasted = text[text.rindex("go on with: ") + len("go on with: ") :].strip()
    step = int(re.search(r"after step (\d+) of", text)[1])
    result = subprocess.run(["bash", "-c", f"{pasted} -x {step + 1}"], capture_output=True, env=ENVIRONMENT)
    assert result.returncode == 0, result.stderr
    assert os.path.exists(os.path.join(out, b"DONE_%08d" % (step + 1)))
    # TOML is UTF-8, and a newline ends its comments.
    lines = open(os.path.join(out, b"run.toml"), encoding="utf-8").read().splitlines()
    assert all(re.match(r"# |[a-z0-9-]+ = ", line) for line in lines)


@pytest.mark.parametrize("name", ["new\nline", "t\tab", 'q"uote', "back\\slash"])
def test_data_of_any_name(name, program, data, tmp_path):
    folder = tmp_path / name
    shutil.copytree(data, folder)
    out = tmp_path / "run"
    # A backslash is a pattern's own: it makes what is behind it a plain character.
    pattern = str(folder).replace("\\", "\\\\")
    place = ["-i", f"{pattern}/train_*.bin", "-j", f"{pattern}/val_*.bin"]
    program.output(*place, *FLAGS, "-o", out, "-x", 3)
    program.output("-o", out, "-y", 1, "-x", 6)
    program.output("--preset", out / "run.toml", "-o", tmp_path / "again", "-x", 3)
    tomllib = pytest.importorskip("tomllib")
    assert tomllib.loads((out / "run.toml").read_text())["train-data"] == place[1]


@pytest.mark.parametrize("flag", ["-e", "--preset", "-i", "-o", "-k", "-b", "--nonsense"])
@pytest.mark.parametrize("value", [b"d\xa9", b"\x80", b"a=\xff", b"\xc3"])
def test_bytes_that_are_no_text(flag, value, program, data, tmp_path):
    arguments = [os.fsencode(str(word)) for word in settings(data, None, "--dry-run")]
    command = [os.fsencode(program.path), *arguments, flag.encode(), value]
    result = subprocess.run(command, capture_output=True, env=ENVIRONMENT, cwd=tmp_path)
    # A dry run needs no data.
    assert result.returncode in ((0,) if flag in ("-o", "-i") else (1, 2))
    assert b"Stack" not in result.stderr and b"ssert" not in result.stderr and b"ABORT" not in result.stderr
    result.stderr.decode()


@pytest.mark.parametrize("name", [b"lat\xe9in", b"new\nline", b"sp ace"])
def test_tokens_in_folders_of_any_name(name, tokenize, program, data, tmp_path):
    out = os.path.join(os.fsencode(tmp_path), name)
    flags = ["-i", data / "tokenizer.bin", "--tokenizer", str(text_flags(tmp_path)[-1])]
    command = [os.fsencode(str(word)) for word in [tokenize.path, *flags]]
    result = subprocess.run([*command, b"-o", out, b"--name", b"d\xe9"], capture_output=True, env=ENVIRONMENT)
    assert result.returncode == 0, result.stderr
    assert result.stdout.decode().count("\n") == 4 + name.count(b"\n") * 3
    assert os.path.exists(os.path.join(out, b"d\xe9_train.bin"))
    json.loads(open(os.path.join(out, b"manifest.json"), encoding="utf-8").read())


def test_sizes_of_another_model_on_resuming(program, data, whole, tmp_path):
    out = copy_back_to(whole, 6, tmp_path / "run")
    before = contents(out)
    for flag, value, own in (("--n-embd", 32, 16), ("--n-layer", 3, 2), ("--block-size", 16, 8)):
        error = program.error("-o", out, "-y", 1, flag, value, status=2)
        assert f"{flag} {value}: the checkpoint to go on from has {own}" in error
    assert contents(out) == before
    # The command of before with -y 1 behind it goes on.
    program.output(*flags(data, out, "-y", 1))
    assert final(out) == final(whole)


def test_a_seed_that_is_too_large(program, data):
    error = program.error(*settings(data, None, "--seed", 99999999999), status=2)
    assert "--seed: expected an integer from 0 to 2147483647, got '99999999999'" in error


def test_a_stray_tokenizer_is_named(program, data, tmp_path):
    formats.write_tokenizer(tmp_path / "gpt2_tokenizer.bin", [bytes([value]) for value in range(256)], None)
    (tmp_path / "d").mkdir()
    for name in ("train_0.bin", "val_0.bin"):
        shutil.copy(data / name, tmp_path / "d" / name)
    error = program.error(*settings(tmp_path / "d", None), cwd=tmp_path)
    assert (
        "the tokenizer gpt2_tokenizer.bin has 256 tokens, the model 60" in error and "--tokenizer '' is none" in error
    )
    program.output(*settings(tmp_path / "d", None), "--tokenizer", "", cwd=tmp_path)


def test_data_that_run_toml_cannot_name(program, data, tmp_path):
    """Settings in files are UTF-8."""
    shutil.copytree(data, tmp_path / os.fsdecode(b"d\xe9"))
    place = [b"-i", os.fsencode(tmp_path) + b"/d\xe9/train_*.bin", b"-j", os.fsencode(data / "val_0.bin")]
    command = [os.fsencode(str(word)) for word in [program.path, *FLAGS, "-x", 1]] + place
    assert subprocess.run(command, capture_output=True, env=ENVIRONMENT).returncode == 0
    result = subprocess.run([*command, b"-o", b"run"], capture_output=True, env=ENVIRONMENT, cwd=tmp_path)
    assert result.returncode == 2 and b"--train-data: expected a text in UTF-8" in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("threads", [1, 3])
def test_added_tokens_are_those_of_prepare(threads, tokenize, tmp_path):
    """Where they overlap, hold spaces, and lie where a text is cut for the threads."""
    tokens = [bytes([value]) for value in range(256)]
    added = [b"<|end|>", b" two words ", b"two", b"<user>", b"<user>x", "é".encode()]
    formats.write_tokenizer(
        tmp_path / "t.bin", [*tokens, b"th", b"the", *added, b"to"], None, range(258, 258 + len(added))
    )
    random = np.random.default_rng(3)
    pieces = [
        b"the ",
        b" two words two",
        b"<user>x",
        b"<user> ",
        b"to",
        b"\n\n",
        "éa".encode(),
        b"<|en",
        b"<|end|>",
        b" ",
    ]
    text = b"".join(pieces[i] for i in random.integers(len(pieces), size=60_000))
    (tmp_path / "text.txt").write_bytes(text)
    shape = ["--tokenizer", tmp_path / "t.bin", "--name", "d"]
    tokenize.output("-i", tmp_path / "text.txt", "-o", tmp_path / "ours", *shape, "--threads", threads)
    command = [sys.executable, "-m", "llm_mojo", "prepare", tmp_path / "text.txt", "--out", tmp_path / "theirs", *shape]
    subprocess.run(list(map(str, command)), check=True, env=ENVIRONMENT | {"PYTHONPATH": str(ROOT / "pysrc")})
    for split in ("train", "val"):
        ours, theirs = (formats.read_tokens(tmp_path / folder / f"d_{split}.bin") for folder in ("ours", "theirs"))
        assert np.array_equal(ours, theirs)
    assert {259, 260, 261, 262, 263} <= set(np.array(formats.read_tokens(tmp_path / "ours/d_train.bin")).tolist())


# ----- limits


def test_more_shards_than_open_files(tokenize, tmp_path):
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    shards = ["--shard-tokens", 20]
    few = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))  # noqa: E731
    tokenize.output(*text_flags(tmp_path), *shards, preexec_fn=few)
    assert len(list((tmp_path / "set").glob("d_train_*.bin"))) > 200
    before = contents(tmp_path / "set")
    none = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))  # noqa: E731
    error = tokenize.error(*text_flags(tmp_path, "other"), *shards, "--force", preexec_fn=none)
    assert "cannot write" in error and "Too many open files" in error
    assert contents(tmp_path / "set") == before


# ----- small files that ask for much


def sparse(path, size):
    with open(path, "r+b") as file:
        file.truncate(size)


def test_a_tokenizer_of_a_terabyte(program, basic, data, tmp_path):
    shutil.copy(data / "tokenizer.bin", tmp_path / "t.bin")
    sparse(tmp_path / "t.bin", 1 << 40)
    assert "expected at most 268435456 bytes" in program.error(*settings(data, None, "--tokenizer", tmp_path / "t.bin"))
    config = formats.ModelConfig(max_seq_len=8, vocab_size=V, num_layers=1, num_heads=1, channels=8)
    formats.write_checkpoint(tmp_path / "m.bin", config, reference.init_tensors(config, seed=1))
    place = ["-e", tmp_path / "m.bin", "-i", data / "train_0.bin", "-j", data / "val_0.bin", "-b", 2, "-t", 4]
    assert "expected at most 268435456 bytes" in basic.error(*place, "--tokenizer", tmp_path / "t.bin")


def test_a_state_of_a_terabyte(program, data, whole, tmp_path):
    out = copy_back_to(whole, 6, tmp_path / "run")
    sparse(out / "state_00000006_00000.bin", 1 << 40)
    assert "too long" in program.error("-o", out, "-y", 1)
    sparse(out / "model_00000006.bin", 1 << 40)
    assert "too long" in program.error("-o", out, "-y", 1)


@pytest.mark.parametrize("sizes", [(1024, 50257, 12, 1, 2**30, 50304), (1, 1, 2**31 - 1, 1, 2**31 - 1, 2**31 - 1)])
def test_sizes_that_overflow(sizes, basic, program, data, tmp_path):
    header = np.zeros(256, "<i4")
    header[:8] = [20240326, 3, *sizes]
    (tmp_path / "m.bin").write_bytes(header.tobytes())
    assert "more than any GPT-2" in basic.error("-e", tmp_path / "m.bin")
    assert "in the header; the file is damaged" in program.error(
        "-e", tmp_path / "m.bin", "-i", data / "train_0.bin", "-j", data / "val_0.bin"
    )


@pytest.mark.parametrize("byte", [0x80, 0xBF, 0xC3, 0xFF, 0x00, 0x1B])
@pytest.mark.parametrize("place", [b"'shape': (", b"'descr': ", b"}"])
def test_bytes_in_an_npy_header(byte, place, program, data, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros(300, "<u2"))
    raw = (tmp_path / "x.npy").read_bytes()
    at = raw.index(place) + len(place)
    (tmp_path / "x.npy").write_bytes(raw[:at] + bytes([byte]) + raw[at + 1 :])
    error = program.error(*settings(data, None, "-i", tmp_path / "x.npy"))
    assert "x.npy" in error and re.search("header of the .npy file|expected one row", error)
    assert "\x1b" not in error


def test_quoting_is_the_shells(program, data, tmp_path):
    """What run.toml says of the command is what was called."""
    out = tmp_path / "a b'c\n$x"
    program.output(*settings(data, out))
    command = (out / "run.toml").read_text().splitlines()[0].removeprefix("# ")
    words = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True, text=True, check=True
    ).stdout
    assert words.split("\0")[:-1] == [str(word) for word in [program.path, *settings(data, out)]]
