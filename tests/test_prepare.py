"""Shards, cleaning, manifest, and what is left after kill -9: the bytes do not depend on it, nor on the number of processes."""

import gzip
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from llm_mojo import formats, job, own_text, pipeline, prepare, readers
from mojo_programs import ROOT, wait_for
from prepared import EOT, error_of, outputs, run, shards

WORDS = "the a of one Thing other stone Water under 7 , .".split()


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def texts(count, seed=0):
    """Documents of some words each; every third is a copy of another."""
    rng = random.Random(seed)
    found = [" ".join(rng.choices(WORDS, k=rng.randint(1, 60))) for _ in range(count)]
    return [found[rng.randrange(i)] if i % 3 == 2 else text for i, text in enumerate(found)]


def write_json_lines(path, documents):
    Path(path).write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))


def tokens_of(folder, pattern):
    return [formats.read_tokens(path).tolist() for path in sorted(Path(folder).glob(pattern))]


# ---------------------------------------------------------------------------------------------------------------------
# shards


def test_first_shard_is_for_validation():
    Path("t.txt").write_bytes(bytes(range(97, 122)) * 50)
    run("t.txt", "--shard-tokens", "300", "--val-tokens", "300")
    assert sorted(os.listdir("data/t")) == [
        *(".lock", "manifest.json", "t_train_000001.bin", "t_train_000002.bin", "t_train_000003.bin"),
        *("t_train_000004.bin", "t_val_000000.bin", "tokenizer.bin"),
    ]
    val, train = tokens_of("data/t", "*_val_*"), tokens_of("data/t", "*_train_*")
    assert [len(each) for each in val + train] == [300, 300, 300, 300, 51]
    assert sum(val + train, []) == [EOT, *bytes(range(97, 122)) * 50]


def test_a_small_rest_goes_to_the_shard_before():
    Path("t.txt").write_bytes(b"x" * (3 * 1000 + 8))
    run("t.txt", "--shard-tokens", "1000", "--val-tokens", "1000")
    assert [len(each) for each in tokens_of("data/t", "t_*")] == [1000, 1009, 1000]
    outputs("data/t")
    run("t.txt", "--shard-tokens", "1000", "--val-fraction", "0.5")
    assert [len(each) for each in tokens_of("data/t", "t_*")] == [1000, 504, 1000, 505]


def test_more_validation_than_a_shard():
    Path("t.txt").write_bytes(b"x" * 999)
    run("t.txt", "--shard-tokens", "200", "--val-tokens", "300")
    assert [len(each) for each in tokens_of("data/t", "*_val_*")] == [200, 100]
    assert [len(each) for each in tokens_of("data/t", "*_train_*")] == [200, 200, 200, 100]
    assert sorted(path.name for path in Path("data/t").glob("t_train*"))[0] == "t_train_000002.bin"


def test_one_way_to_say_what_is_for_validation(capsys):
    Path("t.txt").write_bytes(b"x" * 999)
    message = error_of(capsys, "t.txt", "--val-tokens", "5", "--val-fraction", "0.5")
    assert "--val-fraction and --val-tokens both say" in message


def test_shards_of_another_cut_are_removed():
    Path("t.txt").write_bytes(b"x" * 999)
    run("t.txt", "--shard-tokens", "200")
    run("t.txt")
    files, _ = outputs("data/t")
    assert sorted(files) == ["t_train.bin", "t_val.bin", "tokenizer.bin"]


def test_large_text_is_cut_by_itself(monkeypatch):
    monkeypatch.setattr(own_text, "LARGE_BYTES", 500)
    monkeypatch.setattr(own_text, "SHARD_TOKENS", 200)
    Path("t.txt").write_bytes(b"x" * 499)
    run("t.txt")
    assert [path.name for path in sorted(Path("data/t").glob("t_*"))] == ["t_train.bin", "t_val.bin"]
    Path("t.txt").write_bytes(b"x" * 500)
    run("t.txt")
    assert [path.name for path in sorted(Path("data/t").glob("t_val*"))] == ["t_val_000000.bin"]
    assert [len(each) for each in tokens_of("data/t", "t_*")] == [200, 200, 89, 12]


def test_vocabularies_above_65536(monkeypatch):
    """Ids in uint32, in llm.c's newer format."""
    characters = [chr(code) for code in range(0x10000, 0x10000 + 70_000)]
    Path("t.txt").write_text("".join(characters))
    run("t.txt", "--tokenizer", "char")
    train, val = shards("data/t", "t")
    assert train + val == list(range(70_000))
    assert formats.read_tokens("data/t/t_val.bin").dtype == np.uint32
    assert int.from_bytes(Path("data/t/t_val.bin").read_bytes()[:4], "little") == 20240801


# ---------------------------------------------------------------------------------------------------------------------
# processes, kinds of files, cleaning


def test_processes_do_not_change_the_bytes(toy, monkeypatch):
    write_json_lines("t.jsonl", texts(2000))
    monkeypatch.setattr(readers, "BLOCK_BYTES", 5000)
    for clean in ([], ["--clean", "strip,unique,min-chars:20"]):
        for out, workers in (("one", 1), ("three", 3)):
            monkeypatch.setattr(pipeline, "BYTES_PER_WORKER", 1000)
            run("t.jsonl", "--tokenizer", "gpt2", "--out", out, "--workers", workers, "--shard-tokens", "5000", *clean)
        assert outputs("one")[0] == outputs("three")[0]
    assert outputs("one")[1]["dropped"] > 600


def test_a_killed_worker_is_explained(capsys, monkeypatch):
    Path("kill.py").write_text("import os\ndef now(text):\n    os.kill(os.getpid(), 9)\n")
    write_json_lines("t.jsonl", texts(50))
    monkeypatch.setattr(pipeline, "BYTES_PER_WORKER", 100)
    message = error_of(capsys, "t.jsonl", "--clean", "kill.py:now", "--workers", "2")
    assert "a process that tokenizes was killed" in message and "--workers 1" in message


def test_folder_of_all_kinds(toy):
    folder = Path("corpus/b")
    folder.mkdir(parents=True)
    write_json_lines("corpus/c.jsonl", ["he", "ll"])
    pyarrow.parquet.write_table(pyarrow.table({"text": ["hell", "w"]}), folder / "a.parquet")
    Path("corpus/a.txt.gz").write_bytes(gzip.compress(b"hello"))
    with pyarrow.CompressedOutputStream("corpus/d.md.zst", "zstd") as file:
        file.write(b"we")
    run("corpus", "--tokenizer", "gpt2")
    train, val = shards("data/corpus", "corpus")
    expected = ["hello", "hell", "w", "he", "ll", "we"]
    assert train + val == toy.encode([(text, True) for text in expected]).tolist()


def test_cleaning():
    Path("own.py").write_text("def shout(text):\n    return None if 'not' in text else text.upper()\n")
    documents = ["  one \t two\r\n\n\n\nthree ", "short", "one two\n\nthree", "no, not this one", "one more line"]
    write_json_lines("t.jsonl", documents)
    names = "whitespace,strip,min-chars:10,unique,own.py:shout"
    run("t.jsonl", "--clean", names, "--out", "a")
    train, val = shards("a", "t")
    assert train + val == [EOT, *b"ONE TWO\n\nTHREE", EOT, *b"ONE MORE LINE"]
    _, manifest = outputs("a")
    assert (manifest["documents"], manifest["dropped"]) == (5, 3)
    own = hashlib.sha256(Path("own.py").read_bytes()).hexdigest()
    expected = ["whitespace", "strip", "min-chars:10", "unique", f"own.py:shout (sha256 {own})"]
    assert manifest["recipe"]["cleaning"] == expected


def test_another_own_function_is_another_recipe(capsys):
    write_json_lines("t.jsonl", texts(9))
    for result, said in (("text", "wrote"), ("text", "up to date"), ("text + '!'", "wrote")):
        Path("own.py").write_text(f"def clean(text):\n    return {result}\n")
        capsys.readouterr()
        run("t.jsonl", "--clean", "own.py:clean")
        assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    "clean, message",
    [
        ("wash", "expected names from strip, whitespace, min-chars:N, unique, FILE.py:FUNCTION, got wash"),
        ("min-chars:x", "got min-chars:x"),
        ("none.py:f", "no such file: none.py"),
        ("own.py:g", "expected a function g in own.py, found none"),
        ("own.py:f", "expected a text or None from the function, got 3"),
    ],
)
def test_wrong_cleaning(clean, message, capsys):
    Path("own.py").write_text("def f(text):\n    return 3\n")
    write_json_lines("t.jsonl", ["text"])
    assert message in error_of(capsys, "t.jsonl", "--clean", clean)


def test_separators_and_fields():
    Path("t.txt").write_text("one<|end|>\ntwo\n<|end|>")
    run("t.txt", "--separator", r"<|end|>\n", "--val-fraction", "0.5")
    train, val = shards("data/t", "t")
    assert train + val == [EOT, *b"one", EOT, *b"two\n<|end|>"]
    Path("t.jsonl").write_text('{"body": "abc"}\n{"body": "de"}\n')
    run("t.jsonl", "--field", "body", "--tokenizer", "char", "--val-fraction", "0.5", "--force")
    assert sum(shards("data/t", "t"), []) == [0, 1, 2, 3, 4]


# ---------------------------------------------------------------------------------------------------------------------
# character vocabularies


def test_char_vocabulary_of_another_text(capsys):
    Path("t.txt").write_text("hello world")
    run("t.txt", "--tokenizer", "char")
    assert "meta.pkl" in outputs("data/t")[0]
    Path("more.txt").write_text("low\nhold\n" * 3 + "well, world")
    for tokenizer in ("data/t/meta.pkl", "data/t", "data/t/tokenizer.bin"):
        message = error_of(capsys, "more.txt", "--tokenizer", tokenizer)
        assert "character '\\n' (U+000A) is not among the 8 characters" in message
        assert "it stands in more.txt, line 1, column 4; remove it" in message
    Path("more.txt").write_text("low world " * 3)
    run("more.txt", "--tokenizer", "data/t/meta.pkl")
    assert sum(shards("data/more", "more"), []) == [" dehlorw".index(c) for c in "low world " * 3]


def test_first_unknown_character_is_found_in_any_file(capsys, monkeypatch):
    monkeypatch.setattr(readers, "BLOCK_BYTES", 8)
    Path("t.txt").write_text("abc \n" * 9)
    run("t.txt", "--tokenizer", "char")
    Path("a.txt").write_text("abc\n" * 9)
    for name, write, place in [
        ("b.txt", lambda path: path.write_text("ab c\n" * 7 + "a bé\n"), "b.txt, line 8, column 4"),
        ("b.txt.gz", lambda path: path.write_bytes(gzip.compress("abc\n\n é".encode())), "b.txt.gz, line 3, column 2"),
        ("b.jsonl", lambda path: write_json_lines(path, ["abc"] * 6 + ["a\nb é"]), "b.jsonl, document 7, line 2"),
    ]:
        write(Path(name))
        message = error_of(capsys, "a.txt", name, "--tokenizer", "data/t")
        assert "'é' (U+00E9)" in message and f"it stands in {place};" in message


# ---------------------------------------------------------------------------------------------------------------------
# interruptions


def test_a_run_goes_on_from_every_journal(monkeypatch, capsys):
    """Whatever the last journal was, and however much was written after it, the bytes are those of one run."""
    monkeypatch.setattr(readers, "BLOCK_BYTES", 3000)
    folder = Path("corpus")
    folder.mkdir()
    write_json_lines(folder / "a.jsonl", texts(120))
    (folder / "b.txt").write_text("\n".join(texts(60, 1)))
    pyarrow.parquet.write_table(pyarrow.table({"text": texts(400, 2)}), folder / "c.parquet", row_group_size=50)
    for flags in (["--shard-tokens", "900", "--val-tokens", "900", "--clean", "unique"], ["--tokenizer", "char"]):
        run("corpus", "--out", "whole", *flags)
        states = []
        save = job.Job._save

        def save_a_copy(self, states=states, save=save):
            save(self)
            states.append(f"state{len(states)}")
            shutil.copytree(self.out, states[-1], dirs_exist_ok=True)

        with monkeypatch.context() as patched:
            patched.setattr(job, "JOURNAL_SECONDS", 0.0)
            patched.setattr(job.Job, "_save", save_a_copy)
            run("corpus", "--out", "copied", *flags)
        assert len(states) > 6
        for state, later in zip(states, states[1:]):
            # The journal of one moment and the files of a later one, as a kill between them leaves it.
            shutil.copytree(later, "mixed")
            shutil.copy(f"{state}/journal.json", "mixed")
            capsys.readouterr()
            run("corpus", "--out", "mixed", *flags)
            assert "going on after" in capsys.readouterr().out
            assert outputs("mixed")[0] == outputs("whole")[0]
            assert outputs("mixed")[1]["dropped"] == outputs("whole")[1]["dropped"]
            shutil.rmtree("mixed")
        for state in [*states, "whole", "copied"]:
            shutil.rmtree(state)


@pytest.mark.parametrize("call", range(1, 12, 2))
def test_ctrl_c_in_the_middle_of_writing(call, monkeypatch, capsys):
    """What was written of a block that is not noted yet is written again, in the same place."""
    monkeypatch.setattr(readers, "BLOCK_BYTES", 700)
    write_json_lines("t.jsonl", texts(60))
    flags = ["t.jsonl", "--shard-tokens", "900", "--clean", "unique", "--val-tokens", "900", "--out"]
    run(*flags, "whole")
    write, calls = job.Shards.write, []

    def interrupted(self, ids):
        write(self, ids[: len(ids) // 2])
        calls.append(ids)
        if len(calls) == call:
            raise KeyboardInterrupt
        write(self, ids[len(ids) // 2 :])

    with monkeypatch.context() as patched:
        patched.setattr(job.Shards, "write", interrupted)
        run(*flags, "broken", status=130)
    run(*flags, "broken")
    assert outputs("broken")[0] == outputs("whole")[0]
    assert outputs("broken")[1]["dropped"] == outputs("whole")[1]["dropped"]


def test_a_journal_of_another_job_is_not_used(monkeypatch, capsys):
    monkeypatch.setattr(readers, "BLOCK_BYTES", 50)
    write_json_lines("t.jsonl", texts(30))

    def interrupt(self, result):
        raise KeyboardInterrupt

    def interrupted(*flags):
        with monkeypatch.context() as patched:
            patched.setattr(job.Job, "_take", interrupt)
            run("t.jsonl", *flags, status=130)
        assert Path("data/t/journal.json").exists()

    for change in (
        lambda: ["--val-fraction", "0.3"],
        lambda: ["--tokenizer", "char"],
        lambda: write_json_lines("t.jsonl", texts(31)),
    ):
        interrupted()
        flags = change()
        capsys.readouterr()
        run("t.jsonl", *(flags if isinstance(flags, list) else []))
        assert "going on" not in capsys.readouterr().out
        outputs("data/t")
        shutil.rmtree("data")


def test_killed_while_renaming(monkeypatch, capsys):
    Path("t.txt").write_text("x" * 100)
    run("t.txt", "--out", "whole")
    with monkeypatch.context() as patched:
        patched.setattr(prepare, "_finish_renaming", lambda *found: None)
        run("t.txt")
    os.replace("data/t/t_val.bin.part", "data/t/t_val.bin")
    run("t.txt")
    assert "up to date" in capsys.readouterr().out
    assert outputs("data/t")[0] == outputs("whole")[0]


def start(*arguments, **options):
    """`python -m llm_mojo prepare` in a group of processes of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "pysrc")}
    command = [sys.executable, "-m", "llm_mojo", "prepare", *map(str, arguments)]
    return subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.PIPE, **options)


def children(pid):
    """The processes that a process has started, and those that these have."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *children(child)]
    return found


GATE = """
import os, time

def wait(text):
    while text == "gate" and not os.path.exists("open"):
        time.sleep(0.01)
    return text
"""


def test_kill_9_and_again():
    """The real thing, with worker processes, which do not outlive the one that was killed before the last document."""
    Path("gate.py").write_text(GATE)
    write_json_lines("t.jsonl", [*(texts(2000) * 90), "gate"])
    flags = ["t.jsonl", "--clean", "gate.py:wait", "--shard-tokens", "500_000", "--val-tokens", "500_000"]
    flags += ["--workers", "2", "--out"]
    process = start(*flags, "killed")
    wait_for(lambda: Path("killed/t_train_000002.bin.part").exists())
    workers = children(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert len(workers) >= 2 and not Path("killed/manifest.json").exists()
    wait_for(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() for pid in workers))
    Path("open").touch()
    run(*flags, "killed")
    run(*flags, "whole")
    assert outputs("killed")[0] == outputs("whole")[0]
    assert sum(map(len, tokens_of("whole", "t_*"))) > 10_000_000


def resident(pid):
    """Bytes of memory that a process and its children have."""
    total = 0
    for each in [pid, *children(pid)]:
        try:
            total += int(Path(f"/proc/{each}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (FileNotFoundError, ProcessLookupError, IndexError):
            pass
    return total


@pytest.mark.long
def test_two_gigabytes(tmp_path, capfd):
    """2 GB in under 600 MB of memory, all processes together, killed halfway and resumed: the same bytes."""
    rng = random.Random(0)
    lines = [json.dumps({"text": " ".join(rng.choices(WORDS, k=600))}) + "\n" for _ in range(4000)]
    with open("corpus.jsonl", "w") as file:
        while file.tell() < 2_000_000_000:
            rng.shuffle(lines)
            file.writelines(lines)
    flags = ["corpus.jsonl", "--tokenizer", "gpt2", "--out"]
    peak, seconds, kills = 0, 0.0, 0
    for out in ("whole", "killed"):
        while not Path(out, "manifest.json").exists():
            begin = time.monotonic()
            process = start(*flags, out)
            while process.poll() is None:
                peak = max(peak, resident(process.pid))
                half = sum(path.stat().st_size for path in Path(out).glob("*.part")) > 450_000_000
                if out == "killed" and not kills and half:
                    os.kill(process.pid, signal.SIGKILL)
                    kills += 1
                time.sleep(0.05)
            seconds += time.monotonic() - begin
            assert process.returncode in (0, -9), process.stderr.read()
    assert kills == 1 and outputs("killed")[0] == outputs("whole")[0]
    with capfd.disabled():
        print(f"\npeak {peak / 1e6:.0f} MB, both runs {seconds:.0f} s")
    assert peak < 600e6
