"""The command `train`: what it makes of texts, which run goes on, and that none is lost."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from llm_mojo import Error, fitting, native, runs, train, trainer_flags
from llm_mojo.__main__ import main
from mojo_programs import ENVIRONMENT, ROOT

TINY = ["--n-layer", "1", "--n-head", "1", "--n-embd", "16", "-b", "2", "-t", "8", "-s", "0", "-u", "0"]


class Done(BaseException):
    """The process would be the trainer now; it has run to its end."""


@pytest.fixture
def call(mojo_program, tmp_path, monkeypatch, capfd):
    """Calls `train` in an empty folder with small sizes: (what it and the trainer printed, the trainer's words)."""
    path = mojo_program("train_gpt2.mojo").path
    words = []

    def become(name, given, called, processes):
        assert processes == 1
        words[:] = given
        subprocess.run([path, *given], check=True, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
        raise Done

    monkeypatch.chdir(tmp_path)
    # The trainer looks for presets here and beside its own folder, which is another in the tests.
    Path("presets").symlink_to(ROOT / "presets")
    monkeypatch.setattr(native, "program", lambda name: path)
    monkeypatch.setattr(native, "become", become)

    def call(*more, steps=4):
        capfd.readouterr()
        with pytest.raises(Done):
            main(["train", *more, *TINY, "-x", f"{steps}"])
        return capfd.readouterr().out, list(words)

    return call


@pytest.fixture
def failing(call, capfd):
    """Likewise for what is refused: returns what it said."""

    def failing(*more):
        capfd.readouterr()
        assert main(["train", *more, *TINY, "-x", "4"]) == 1
        return capfd.readouterr().err

    return failing


def write_text(name, letters="one two three ", times=40):
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(letters * times)
    return path


def interrupt(run, step):
    """As if the run had been killed after this checkpoint."""
    for path in Path(run).iterdir():
        found = re.fullmatch(r"(?:model|state|extra|DONE)_(\d+).*", path.name)
        if found and int(found[1]) > step:
            path.unlink()


def files(run):
    return {path.name: path.read_bytes() for path in Path(run).iterdir() if re.match("model|state|extra", path.name)}


def test_the_flags_are_those_of_the_trainer(mojo_program):
    text = mojo_program("train_gpt2.mojo").output("--help")
    rows = re.findall(r"^ +(?:-(\w+) )?--([\w-]+)( \S+)?  ", text, re.M)
    rows = [row for row in rows if row[1] not in ("help", "version")]
    assert {letter: name for letter, name, _ in rows if letter} == trainer_flags.LETTERS
    assert {name for _, name, value in rows if not value} == {*trainer_flags.SWITCHES}


def test_words():
    words = ["a.txt", "-x", "3", "--lr=1", "b", "--replace", "--dry-run", "-m", "-1", "--max-steps", "5", "-"]
    texts, flags = trainer_flags.split_words(words, own_switches=["replace"])
    assert texts == ["a.txt", "b", "-"]
    assert flags == {"lr": "1", "replace": True, "dry-run": True, "val-batches": "-1", "max-steps": "5"}
    assert trainer_flags.as_words(flags)[-4:] == ["--val-batches", "-1", "--max-steps", "5"]
    for words, text in {("-x",): "-x: expected a value", ("--dry-run=1",): "--dry-run: expected no value"}.items():
        with pytest.raises(Error, match=text):
            trainer_flags.split_words(words)


@pytest.mark.parametrize(
    ("tokens", "given", "changes"),
    [
        ((10_000_000, 1_000_000), [], {}),
        ((7000, 768), [], {"batch-size": 11, "val-batches": -1}),
        ((7000, 769), [], {"val-batches": -1}),
        ((3000, 300), [], {"batch-size": 4, "val-batches": -1}),
        ((3000, 300), ["batch-size"], {"seq-len": 24, "val-batches": -1}),
        ((3000, 300), ["batch-size", "seq-len"], {"val-batches": -1}),
        ((400, 40), [], {"batch-size": 1, "seq-len": 39, "val-batches": -1}),
        ((400, 40), ["seq-len"], {"batch-size": 1, "val-batches": -1}),
        ((2, 2), [], {"batch-size": 1, "seq-len": 1, "val-batches": -1}),
    ],
)
def test_sizes_fit(tokens, given, changes):
    settings = {"batch-size": 12, "seq-len": "64", "val-batches": 40}
    assert fitting.fit(settings, given, *tokens) == changes
    B, T = (changes.get(name, int(settings[name])) for name in ("batch-size", "seq-len"))
    assert B * T + 1 <= min(tokens) or given
    quiet = fitting.fit(settings | {"val-every": 0}, given, tokens[0], 0)
    assert quiet == (
        {"batch-size": 1, "seq-len": 1} if tokens[0] == 2 else fitting.fit(settings, given, tokens[0], 10**9)
    )
    # A step that accumulates has the sizes of its passes.
    assert fitting.fit(settings | {"total-batch-size": 1536}, [], 100, 100)["total-batch-size"] == 0


def test_a_text_of_one_token():
    with pytest.raises(Error, match="the text is too small: expected 2 tokens or more"):
        fitting.fit({"batch-size": 12, "seq-len": 64}, [], 100, 1)


@pytest.mark.parametrize(("size", "share"), [(10**9, 0.1), (7690, 0.1), (7689, 0.11), (4096, 0.19), (100, 0.2)])
def test_validation_fits(size, share):
    assert fitting.val_fraction(size, 769) == share


def test_a_small_folder(call):
    write_text("notes/a.txt", times=20)
    write_text("notes/sub/b.md", "Zwölf ", 5)
    write_text("notes/t.csv", "1,2\n", 1)
    Path("notes/paper.pdf").write_bytes(b"%PDF-1.7 \x80")
    # Whatever their names say.
    Path("notes/paper.txt").write_bytes(b"%PDF-1.7 secret")
    Path("notes/model.txt").write_bytes((20240326).to_bytes(4, "little") + b"secret")
    Path("notes/z.txt").write_bytes(b"se\0cret")
    output, words = call("notes")
    assert (
        "notes: left out 5 files that are not read from folders: 3 .txt, 1 .csv, 1 .pdf (model.txt, paper.pdf,"
        in output
    )
    assert b"s\0e\0c\0r" not in b"".join(path.read_bytes() for path in Path("data/notes").glob("*.bin"))
    assert "fitted to a small text: validation on all that is for it\n" in output
    assert runs.Run(Path("runs/notes")).is_finished()
    assert words[:2] == ["--train-data", "data/notes/notes_train*.bin"] and words[-2:] == ["-y", "0"]


def test_less_than_a_batch(call):
    write_text("a.txt", times=6)
    output, words = call("a.txt", "--batch-size", "50", "-b", "9")
    # 84 bytes and an end: 17 tokens are a fifth, and -b 9 does not fit.
    assert "fitted to a small text: the last 20% of the text for validation in place of 10%" in output
    assert words[words.index("--batch-size") + 1] == "2"


def test_an_interrupted_run_goes_on(call):
    write_text("a.txt")
    call("a.txt", "-n", "1")
    whole = files("runs/a")
    interrupt("runs/a", 2)
    output, words = call("a.txt", "-n", "1")
    assert "going on with runs/a, saved after step 2; --replace begins anew" in output
    assert words == ["-o", "runs/a", "-y", "1"]
    assert files("runs/a") == whole
    # By hand too, and with another way to say the same.
    interrupt("runs/a", 3)
    assert call("./a.txt", "--checkpoint-every=1")[1] == words
    assert sorted(os.listdir("runs")) == ["a"]


def test_other_settings_and_finished_runs_stay(call):
    write_text("a.txt")
    call("a.txt")
    first = files("runs/a")
    assert "runs/a holds a finished run and stays as it is; this one is runs/a-2" in call("a.txt")[0]
    interrupt("runs/a-2", 0)
    # It has no checkpoint, so nothing is lost.
    assert call("a.txt", "--seed", "4", "-n", "2")[1][-4:] == ["-o", "runs/a-2", "-y", "0"]
    interrupt("runs/a-2", 2)
    assert call("a.txt", "--seed", "5")[1][-4:] == ["-o", "runs/a-3", "-y", "0"]
    interrupt("runs/a-3", 2)
    assert call("a.txt", "--seed", "4", "-n", "2")[1] == ["-o", "runs/a-2", "-y", "1"]
    assert files("runs/a") == first
    assert call("a.txt", "--seed", "6", "--replace")[1][-4:] == ["-o", "runs/a", "-y", "0"]
    assert files("runs/a") != first


def test_an_interrupted_run_says_with_what_it_goes_on(call):
    write_text("a.txt")
    call("a.txt", "-n", "2", "--seed", "7")
    interrupt("runs/a", 2)
    said = call("a.txt", "-n", "2", "--seed", "8", steps=6)[0]
    expected = "runs/a holds an unfinished run with other settings (--seed 7 --max-steps 4; with these it goes on)"
    assert f"{expected} and stays as it is; this one is runs/a-2" in said


def test_another_text_of_that_name(call):
    write_text("a.txt")
    call("a.txt", "-n", "2")
    data = {path.name: path.read_bytes() for path in Path("data/a").iterdir()}
    interrupt("runs/a", 2)
    write_text("folder/a.txt", "four five six ")
    _, words = call("folder/a.txt", "-n", "2")
    assert words[1] == "data/a-2/a_train*.bin" and words[-3] == "runs/a-2"
    _, words = call("a.txt", "folder/a.txt", "-n", "2")
    assert words[1] == "data/a-3/a_train*.bin" and words[-3] == "runs/a-3"
    assert {path.name: path.read_bytes() for path in Path("data/a").iterdir()} == data
    assert call("a.txt", "-n", "2")[1] == ["-o", "runs/a", "-y", "1"]
    # The same file, changed: a run of the old text cannot go on.
    interrupt("runs/a", 2)
    write_text("a.txt", "six seven eight ")
    assert call("a.txt", "-n", "2")[1][-3] == "runs/a-4"


def test_another_tokenizer_for_the_same_text(call):
    """Its tokens get a folder of their own, which is found again; the first run can go on."""
    write_text("a.txt")
    call("a.txt", "-n", "2")
    data = {path.name: path.read_bytes() for path in Path("data/a").iterdir()}
    interrupt("runs/a", 2)
    _, words = call("a.txt", "--tokenizer", "char", "-n", "2")
    assert words[1] == "data/a-2/a_train*.bin" and words[-3] == "runs/a-2"
    interrupt("runs/a-2", 2)
    assert call("a.txt", "--tokenizer", "char", "-n", "2")[1] == ["-o", "runs/a-2", "-y", "1"]
    assert call("a.txt", "-n", "2")[1] == ["-o", "runs/a", "-y", "1"]
    _, words = call("a.txt", "--tokenizer", "data/a-2", "-n", "2")
    assert words[1] == "data/a-3/a_train*.bin"
    assert {path.name: path.read_bytes() for path in Path("data/a").iterdir()} == data
    assert sorted(path.name for path in Path("data").iterdir()) == ["a", "a-2", "a-3"]


def test_the_text_of_a_preset(call, failing):
    """Without a text a preset brings its own: what makes its data, or nothing that another text could be taken for."""
    write_text("a b.txt")
    call("a b.txt")
    assert (
        f"name the text (and --tokenizer, if it had one): train '{Path('a b.txt').resolve()}' --preset runs/a_b/run.toml"
        in failing("--preset", "runs/a_b/run.toml")
    )
    Path("mine.toml").write_text('train-data = "data/x_*.bin"\nseq-len = 8\n')
    assert "train on those data with the trainer itself: train_gpt2 --preset mine.toml" in failing(
        "--preset", "mine.toml"
    )
    Path("mine.toml").write_text(
        "made-by = \"python -m llm_mojo prepare 'a b.txt' --tokenizer char --out data/b\"\nseq-len = 8\n"
    )
    _, words = call("--preset", "mine.toml")
    assert words[1] == "data/a_b-2/a_b_train*.bin"


def test_a_folder_given(call, failing):
    write_text("a.txt")
    call("a.txt", "--out", "here", "-n", "2")
    assert "here holds a finished run; --replace replaces it, --out names another" in failing("a.txt", "--out", "here")
    interrupt("here", 2)
    assert "here holds a run of another text or other settings" in failing("a.txt", "--out", "here", "--seed", "3")
    assert call("a.txt", "-n", "2", "-o", "here")[1] == ["-o", "here", "-y", "1"]
    call("a.txt", "--out", "here", "--seed", "3", "--replace")
    write_text("thesis/chapter.txt")
    assert "thesis holds something else" in failing("a.txt", "--out", "thesis")
    assert os.listdir("thesis") == ["chapter.txt"] and not Path("runs").exists()


def test_a_run_replaced_by_hand_is_another(call, mojo_program):
    write_text("a.txt")
    _, words = call("a.txt", "-n", "2")
    mojo_program("train_gpt2.mojo").output(*words, "--n-embd", "32")
    interrupt("runs/a", 2)
    assert call("a.txt", "-n", "2")[1][-3] == "runs/a-2"


def test_hints_are_what_was_called(call, mojo_program):
    """Whoever called `llm-mojo train` can paste what the trainer says."""
    write_text("a.txt")
    call("a.txt")
    words = [mojo_program("train_gpt2.mojo").path, "-o", "runs/a", "-y", "1", "-x", "6"]
    environment = ENVIRONMENT | {"LLM_MOJO_CALLED": "llm-mojo train"}
    said = subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout
    assert "sample:  llm-mojo sample -e runs/a\n" in said and "plot:    llm-mojo plot runs/a\n" in said
    assert "go on:   llm-mojo train_gpt2 -o runs/a -y 1 -x 12\n" in said
    wrong = subprocess.run([*words, "--quite-another", "1"], env=environment, capture_output=True, text=True)
    assert wrong.returncode == 2 and "`llm-mojo train --help` lists the flags" in wrong.stderr


def test_a_dry_run_makes_no_folder(call):
    write_text("a.txt")
    call("a.txt", "--dry-run")
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("it's [draft].txt", "it_s_draft"),
        ("文字.txt", "文字"),
        ("???.txt", "my"),
        ("pydocs.txt", "my-pydocs"),
        ("-x.txt", "my--x"),
        ("ä" * 100 + ".txt", "ä" * 60),
        ("my_train.txt", "my_train"),
    ],
)
def test_names(given, name, call):
    write_text(given)
    assert call(f"./{given}")[1][-3] == f"runs/{name}"


def test_processes():
    """How many train is no flag of the trainer, but a part of each batch for each of them is."""
    assert train.split_processes(["my.txt", "-x", "5"]) == (["my.txt", "--max-steps", "5"], 1)
    assert train.split_processes(["a", "--np", "2"]) == (["a", "--replicas", "2"], 2)
    assert train.split_processes(["a", "--np=2", "--replicas", "4"]) == (["a", "--replicas", "4"], 2)
    for wrong in ("0", "two", "-1"):
        with pytest.raises(Error, match="--np: expected a number of processes"):
            train.split_processes(["--np", wrong])


def test_several_texts_in_one_word(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "b c.txt", "x/d.md", "x/e.md"):
        write_text(name)
    assert train.expand(["b c.txt", "pydocs"]) == ["b c.txt", "pydocs"]
    assert train.expand(["a.txt 'b c.txt'"]) == ["a.txt", "b c.txt"]
    assert train.expand(["x/*.md a.txt"]) == ["x/d.md", "x/e.md", "a.txt"]
    assert train.expand(["it's"]) == ["it's"]


def test_what_is_refused(failing, capfd):
    write_text("a.txt")

    def failing_alone(*flags):
        assert main(["train", "a.txt", *flags]) == 1
        return capfd.readouterr().err

    assert "nothing.txt: no such file or folder" in failing("nothing.txt")
    assert "unknown flag --max-minuts; did you mean --max-minutes?" in failing("a.txt", "--max-minuts", "2")
    assert "unknown flag --quite-another; train --help lists the flags" in failing("a.txt", "--quite-another", "2")
    assert not Path("data").exists()
    assert "--resume is chosen here" in failing("a.txt", "-y", "0")
    assert "--batch-size: expected an integer of at least 1, got '0'" in failing_alone("-b", "0")
    assert "--seq-len: expected an integer of at least 1, got 'long'" in failing_alone("-t", "long")
    assert "a.txt is a file; --out names the folder of the run" in failing("a.txt", "-o", "a.txt")
    assert "no preset much: neither the file much nor presets/much.toml" in failing("a.txt", "--preset", "much")
    Path("x").write_bytes(b"a\0b" * 99)
    assert "x: expected text, found binary data" in failing("x")
    Path("x").write_bytes(b"%PDF-" * 99)
    assert "x: expected text, found PDF" in failing("x")
    assert not Path("runs").exists()
