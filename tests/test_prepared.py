"""Whose a folder is: `prepare` touches only what is its own, and what another job has made stays."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llm_mojo import Error, files, formats, job, prepare
from llm_mojo.__main__ import main
from mojo_programs import ROOT
from prepared import error_of, outputs, run

TEXT = "some words, and more of them\n" * 700  # 20 KB


@pytest.fixture(autouse=True)
def small_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("small.txt").write_text(TEXT)
    Path("h").mkdir()
    for name in ("precious.txt", "x.bin"):
        Path("h", name).write_text("precious")


def contents(folder="."):
    """Every file but those of `prepare`'s own bookkeeping."""
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file() and path.name != ".lock"}


def edit(path, **changes):
    Path(path).write_text(json.dumps(json.loads(Path(path).read_text()) | changes))


@pytest.mark.parametrize("name", ["manifest.json", "manifest.json.part"])
@pytest.mark.parametrize("more", [[], ["--force"]], ids=["", "force"])
@pytest.mark.parametrize(
    "output", ["../h/precious.txt", "{cwd}/h/precious.txt", "../h/x.bin", "precious.txt", "..", "", "a\0_train.bin"]
)
def test_manifests_that_name_what_is_not_ours(output, more, name, capsys, tmp_path):
    run("small.txt", "--out", "d")
    if name != "manifest.json":
        os.rename("d/manifest.json", f"d/{name}")
    Path("d/precious.txt").write_text("precious")
    about = json.loads(Path("d", name).read_text())["outputs"]["small_val.bin"]
    edit(f"d/{name}", outputs={output.format(cwd=tmp_path): about}, recipe={})
    before = contents()
    message = error_of(capsys, "small.txt", "--out", "d", *more)
    assert f"d/{name}: expected the manifest of prepared data, found something that is not ours" in message
    assert contents() == before


def test_files_that_only_look_like_ours_stay(capsys):
    Path("d").mkdir()
    others = ("movie.mkv.part", "seen.sqlite.backup", "big_train.bin.part", "x.tmp", "small_train.bin.123.tmp")
    for name in others:
        Path("d", name).write_text(name)
    for clean in ([], ["--clean", "unique"]):
        run("small.txt", "--out", "d", *clean, "--force")
        assert all(Path("d", name).read_text() == name for name in others)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("manifest.json", '{"name": "app"}', "d/manifest.json: expected the manifest of prepared data"),
        ("manifest.json", "[1,2]", "d/manifest.json: expected the manifest of prepared data"),
        ("manifest.json", "[" * 100_000, "d/manifest.json: expected the manifest of prepared data"),
        ("manifest.json", '{"manifest": 1, "outputs": [], "inputs": []}', "d/manifest.json: expected"),
        ("manifest.json", '{"manifest": 1, "outputs": {"t_val.bin": 3}, "inputs": []}', "d/manifest.json: expected"),
        ("journal.json", "{}", "d/journal.json: expected the journal of an unfinished prepare"),
        ("journal.json", '{"journal": 1, "recipe": 3}', "d/journal.json: expected the journal"),
        ("small_train.bin.part", "mine", "d/small_train.bin.part is there, but no journal"),
        ("seen.sqlite", "mine", "d/seen.sqlite is there, but no journal"),
        ("small_train.bin", "mine", "d/small_train.bin is there, and no manifest says that it is of this data"),
        ("small_train_000007.bin", "mine", "d/small_train_000007.bin is there, and no manifest says"),
        ("tokenizer.bin", "mine", "d/tokenizer.bin: expected a tokenizer file"),
    ],
)
def test_what_is_in_the_way_is_named(name, content, message, capsys):
    Path("d").mkdir()
    Path("d", name).write_text(content)
    before = contents()
    assert message in error_of(capsys, "small.txt", "--out", "d", "--clean", "unique")
    assert contents() == before


def test_the_tokenizer_that_the_data_are_made_with_may_lie_there(capsys):
    main(["tokenizer", "small.txt", "--vocab-size", "270", "--out", "d"])
    assert "d/tokenizer.bin is there, of another vocabulary" in error_of(capsys, "small.txt", "--out", "d")
    run("small.txt", "--tokenizer", "d", "--out", "d")


@pytest.mark.parametrize(
    "name",
    [".lock", "small_train.bin.part", "small_all.bin.part", "journal.json", "tokenizer.bin.part", "small_val.bin"],
)
def test_symbolic_links_are_not_followed(name, capsys):
    Path("d").mkdir()
    Path("d", name).symlink_to("../h/precious.txt")
    for more in ([], ["--force"]):
        main(["prepare", "small.txt", "--out", "d", *more])
        assert Path("h/precious.txt").read_text() == "precious"
    capsys.readouterr()


def test_a_lock_that_is_no_file(capsys):
    for make, found in [
        (lambda: os.symlink("../h/precious.txt", "d/.lock"), "a symbolic link"),
        (lambda: os.symlink("nowhere", "d/.lock"), "a symbolic link"),
        (lambda: os.mkfifo("d/.lock"), "something else"),
    ]:
        Path("d").mkdir()
        make()
        message = error_of(capsys, "small.txt", "--out", "d")
        assert f"d/.lock: expected a file of our own to write to, found {found}" in message
        shutil.rmtree("d")
    assert not Path("nowhere").exists()


def test_a_link_that_came_during_the_job(monkeypatch, capsys):
    def link(self):
        if not os.path.lexists("d/small_all.bin.part"):
            os.symlink("../h/x.bin", "d/small_all.bin.part")

    monkeypatch.setattr(job.Job, "_write_journal", link)
    assert "small_all.bin.part: expected a file of our own" in error_of(capsys, "small.txt", "--out", "d")
    assert Path("h/x.bin").read_text() == "precious"


def test_an_old_shard_that_was_changed_stays(capsys):
    run("small.txt", "--out", "d", "--shard-tokens", "5000")
    Path("d/small_train_000003.bin").write_text("mine now")
    run("small.txt", "--out", "d")
    assert "note: d/small_train_000003.bin has been changed since it was made and stays" in capsys.readouterr().out
    assert Path("d/small_train_000003.bin").read_text() == "mine now"
    assert [path.name for path in Path("d").glob("*_train_*")] == ["small_train_000003.bin"]


@pytest.mark.parametrize("moment", ["put_in_place", "start_over"])
def test_nothing_is_left_by_a_kill_at_the_end(moment, monkeypatch):
    """Whatever had been done of the last steps, the next run finishes them."""
    run("small.txt", "--out", "d", "--shard-tokens", "5000")

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(prepare, moment, killed)
        run("small.txt", "--out", "d", status=130)
    run("small.txt", "--out", "d")
    outputs("d")


# ---------------------------------------------------------------------------------------------------------------------
# names that collide


def test_names_keep_their_letters():
    for name, text in (("红楼梦", "a b c " * 50), ("西游记", "d e f " * 50), ("Ünïcode é", "g " * 50)):
        Path(f"{name}.txt").write_text(text)
        run(f"{name}.txt")
    assert sorted(path.name for path in Path("data").iterdir()) == ["Ünïcode_é", "红楼梦", "西游记"]
    assert Path("data/红楼梦/红楼梦_train.bin").exists()


def test_another_text_of_the_same_name_is_refused(capsys):
    Path("a").mkdir()
    Path("b").mkdir()
    Path("a/input.txt").write_text("first " * 50)
    Path("b/input.txt").write_text("second " * 50)
    run("a/input.txt")
    before = outputs("data/input")[0]
    message = error_of(capsys, "b/input.txt")
    assert "data/input holds data made from a/input.txt; choose another folder (--out, or --name)" in message
    assert "--force" in message and outputs("data/input")[0] == before
    run("b/input.txt", "--name", "other")
    # The same text with other settings, or changed, is the same job.
    run(Path("a/input.txt").absolute(), "--val-fraction", "0.3")
    Path("a/input.txt").write_text("third " * 50)
    Path("a/more.txt").write_text("more " * 50)
    run("a", "--name", "input", "--out", "data/input")
    run("b/input.txt", "--force")
    outputs("data/input")


def test_an_unfinished_job_of_another_text_is_kept(monkeypatch, capsys):
    Path("other.txt").write_text("other " * 50)

    take = job.Job._take

    def interrupt(self, result):
        take(self, result)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(job.Job, "_take", interrupt)
        run("small.txt", "--out", "d", status=130)
    assert "d holds data made from small.txt" in error_of(capsys, "other.txt", "--out", "d")
    assert "d holds data made from small.txt" in error_of(capsys, "pydocs", "--out", "d")
    run("small.txt", "--out", "d")
    assert "going on" in capsys.readouterr().out


def test_a_job_that_came_to_nothing_is_in_nobodys_way(capsys):
    Path("none.jsonl").write_text('{"text": 3}\n')
    Path("short.txt").write_text("x")
    for name in ("none.jsonl", "short.txt"):
        error_of(capsys, name, "--out", "d", "--name", "n")
    run("small.txt", "--out", "d")
    outputs("d")


def test_names_not_in_utf8_and_too_long(capsys):
    for name in (b"t\xe9xt.txt", b"new\nline.txt", b"it's [draft]\t.txt"):
        Path(os.fsdecode(name)).write_text("text " * 50)
        run(os.fsdecode(name))
        run(os.fsdecode(name))
        assert "up to date" in capsys.readouterr().out
    assert sorted(path.name for path in Path("data").iterdir()) == ["it_s_draft_", "new_line", "t_xt"]
    Path("é" * 120).write_text("text " * 50)
    assert "up to 200 bytes" in error_of(capsys, "é" * 120)


@pytest.mark.parametrize("name", [b"t\xe9xt.txt", b'it\'s "my" [draft]\t\n.txt', "红楼梦.txt".encode()])
def test_the_trainer_reads_manifests_with_any_name(name, mojo_program):
    Path(os.fsdecode(name)).write_text("text " * 100)
    run(os.fsdecode(name), "--out", "d")
    (train,) = Path("d").glob("*_train.bin")
    flags = ["-i", train, "-j", str(train).replace("_train", "_val"), "--n-layer", 1, "--n-head", 1, "--n-embd", 8]
    flags += ["-b", 1, "-t", 8, "-s", 0, "-x", 1, "-m", 1, "--tokenizer", "d/tokenizer.bin"]
    assert "step    1/1" in mojo_program("train_gpt2.mojo").output(*flags)


# ---------------------------------------------------------------------------------------------------------------------
# files of ours


def test_a_file_that_another_process_is_writing_stays(tmp_path):
    with files.atomic_file("f") as mine:
        mine.write(b"first")
        (name,) = Path().glob("f.*.tmp")
        code = "from llm_mojo.files import atomic_file\nwith atomic_file('f') as file: file.write(b'other')"
        environment = os.environ | {"PYTHONPATH": str(ROOT / "pysrc")}
        subprocess.run([sys.executable, "-c", code], check=True, env=environment)
        assert Path("f").read_bytes() == b"other" and name.exists()
    assert Path("f").read_bytes() == b"first" and not list(Path().glob("*.tmp"))


def test_a_link_is_replaced_and_its_target_stays():
    Path("f").symlink_to("h/precious.txt")
    with files.atomic_file("f") as file:
        file.write(b"ours")
    assert Path("f").read_bytes() == b"ours" and not Path("f").is_symlink()
    assert Path("h/precious.txt").read_text() == "precious"


def test_what_is_there_is_replaced_only_when_asked():
    formats.write_tokens("t.bin", [1, 2])
    before = Path("t.bin").read_bytes()
    with files.atomic_file("t.bin", replace=False) as file:
        file.write(before)
    with pytest.raises(Error, match="t.bin is there already, with other content; --force replaces it"):
        with files.atomic_file("t.bin", replace=False) as file:
            file.write(b"new")
    assert Path("t.bin").read_bytes() == before and not list(Path().glob("*.tmp"))
