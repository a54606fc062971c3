"""The site: its tutorial is run from the first line to the last, and what pages print is compared with what they say is printed.

Chapters build on each other, so all are one program in one process. A `text` block after a `python` block is its whole output. The
guide to Python is run in the same way. What is not run: blocks of the shell (they install packages, or train for minutes;
tests/test_wheel.py and tests/test_train.py run the same commands), Mojo, which is quoted from its source when the site is built, and
the blocks of NOT_RUN. `make test-docs` runs all of this file.
"""

import contextlib
import importlib
import io
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from format_tables import PAGE, Reader, expect_object, lines, tables
from llm_mojo import formats, native, run_log
from llm_mojo.__main__ import main
from tiny_run import STEPS, flags

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
CHAPTERS = sorted((DOCS / "gpt").glob("*.md"))
# Pages with Python that is not run here, and why.
NOT_RUN = {
    "guides/serve.md": "wants a server and the package openai: tests/test_serve.py asks the same with both",
    "guides/python.md": "the block marked py downloads GPT-2",
    "guides/data.md": "tests/test_datasets.py prepares the data set that the entry describes",
    "guides/wrong.md": "test_look runs its function on a shard of its own",
}
FENCE = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


def snippets(page: Path) -> list[tuple[int, str, str | None]]:
    """Returns line, code and promised output of a page's python blocks."""
    page_text = page.read_text()
    blocks = [(page_text.count("\n", 0, m.start()) + 2, m[2], textwrap.dedent(m[3])) for m in FENCE.finditer(page_text)]
    following = [*blocks[1:], (0, "", "")]
    return [
        (at, code, after if kind == "text" else None)
        for (at, language, code), (_, kind, after) in zip(blocks, following)
        if language == "python"
    ]


def expect_promised(page: Path, names: dict) -> None:
    """Runs a page's python blocks one after the other in `names`, and expects what the page says that they print."""
    for at, code, promised in snippets(page):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("\n" * (at - 1) + code, str(page), "exec"), names)
        if promised is not None:
            assert printed.getvalue() == promised, f"{page.name}:{at}"


@pytest.mark.long
def test_tutorial_runs_and_prints_what_it_says():
    assert len(CHAPTERS) == 8
    names: dict = {"__name__": "tutorial"}
    for page in CHAPTERS:
        expect_promised(page, names)
    assert [round(float(x), 1) for x in names["losses"][:1]] == [round(float(names["np"].log(names["V"])), 1)]
    assert names["losses"][-1] < 2.8


@pytest.mark.long
@pytest.mark.engine
def test_guide_to_python_runs_and_prints_what_it_says(program, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "presets").symlink_to(ROOT / "presets")
    monkeypatch.setattr(native, "program", lambda name: program.path)
    expect_promised(DOCS / "guides/python.md", {"__name__": "guide"})


def test_figures_and_numbers_are_there(monkeypatch):
    pytest.importorskip("latex2mathml", reason="make docs installs it")
    monkeypatch.syspath_prepend(DOCS / "tools")
    hooks = importlib.import_module("hooks")
    found = set()
    for page in DOCS.rglob("*.md"):
        for kind, name in re.findall(r"\{\{ (figure|table|story|run): (.+?) \}\}", page.read_text()):
            found.add(kind)
            if kind in hooks.MACROS:
                assert hooks.MACROS[kind](name)
            else:
                assert re.search(r"\d", hooks.NUMBER.sub(hooks.number, f"{{{{ {kind}: {name} }}}}")), (page, name)
    assert found == {"figure", "table", "story", "run"}


def test_what_is_not_run_is_on_the_list():
    run = {*CHAPTERS, DOCS / "guides/python.md", PAGE}
    found = set()
    for page in DOCS.rglob("*.md"):
        kinds = [kind for _, kind, _ in FENCE.findall(page.read_text())]
        if "py" in kinds or ("python" in kinds and page not in run):
            found.add(str(page.relative_to(DOCS)))
    assert found == NOT_RUN.keys()


@pytest.mark.engine
def test_look(tmp_path):
    (tmp_path / "my.txt").write_text("one two three\n" * 400)
    main(["prepare", str(tmp_path / "my.txt"), "--tokenizer", "byte", "--out", str(tmp_path / "data")])
    names: dict = {}
    for _, code, _ in snippets(DOCS / "guides/wrong.md"):
        exec(code, names)
    assert "one two three\none" in names["look"](tmp_path / "data/my_train.bin", tmp_path / "data")


def test_memory_is_what_the_trainer_says(program):
    rows = re.findall(
        r"^\| \w+ \(`(d\d+)`\) \| (\d+) x ([\d,]+) \| ([\d.]+) GB \| ([\d.]+) GB \|$",
        (DOCS / "guides/memory.md").read_text(),
        re.MULTILINE,
    )
    assert len(rows) > 8
    for model, B, T, *promised in rows:
        for recompute, gigabytes in enumerate(promised):
            sizes = ["-e", model, "-b", B, "-t", T.replace(",", ""), "--recompute", recompute]
            # A model beyond this machine's memory is status 1, and says its size all the same.
            said = program.run(*sizes, "--dry-run", "--tokenizer", "", "-i", "none.bin", "-j", "none.bin").stdout
            found = int(re.search(r"^memory +([\d,]+) MB", said, re.MULTILINE)[1].replace(",", ""))
            assert f"{found / 1000:.1f}" == gigabytes, (model, B, T, recompute)


def test_answers_and_exercises_are_there():
    for page in CHAPTERS:
        page_text = page.read_text()
        assert "## Exercises\n\n1. " in page_text and "\n2. " in page_text, page
        assert "**1.**" in page_text and "**2.**" in page_text, page


def test_quoted_functions_exist():
    source = (ROOT / "train_gpt2_basic.mojo").read_text()
    quoted = [
        name for page in CHAPTERS for name in re.findall(r"^\{\{ mojo: (\w+) \}\}$", page.read_text(), re.MULTILINE)
    ]
    assert len(quoted) > 10
    for name in quoted:
        assert re.search(rf"^ *def {name}\(", source, re.MULTILINE), name


@pytest.mark.long
def test_site_builds_and_loads_nothing_from_elsewhere(tmp_path):
    pytest.importorskip("material", reason="make docs installs mkdocs-material")
    needed = [ROOT / "build" / name for name in ("train_gpt2", "sample_gpt2")]
    if not all(program.exists() for program in needed):
        pytest.skip("the page of flags needs built programs; make docs builds them")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "-q", "-d", tmp_path / "site"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "<math" in (tmp_path / "site/gpt/1-tokens.html").read_text()


# ----- docs/reference/formats.md: files of a run, taken apart by the page's tables


@pytest.fixture(scope="module")
def program(mojo_program):
    return mojo_program("train_gpt2.mojo")


@pytest.fixture(scope="module")
def checkpoint(whole):
    """What the page's table says is in a checkpoint of the tiny run."""
    return Reader((whole / f"model_{STEPS:08}.bin").read_bytes()).read(tables("Checkpoint")[0])


def test_checkpoint_is_as_the_page_says(whole, checkpoint):
    config, tensors = formats.read_checkpoint(whole / f"model_{STEPS:08}.bin")
    sizes = ("maxT", "V", "L", "NH", "C", "Vp")
    assert tuple(checkpoint[name] for name in sizes) == tuple(vars(config).values())
    assert [name for name in checkpoint if name in tensors] == list(tensors)
    for name, tensor in tensors.items():
        assert np.array_equal(checkpoint[name], tensor) and tensor.any(), name
    assert not checkpoint["wte"][checkpoint["V"] :].any()
    names: dict = {}
    for _, code, _ in snippets(PAGE):
        exec(code, names)
    assert np.array_equal(
        names["read_wte"](whole / "best.bin"), formats.read_checkpoint(whole / "best.bin")[1]["wte"][:60]
    )


def test_bfloat16_checkpoint_is_as_the_page_says(whole, tmp_path):
    config, tensors = formats.read_checkpoint(whole / f"model_{STEPS:08}.bin")
    formats.write_checkpoint(tmp_path / "half.bin", config, tensors, "bfloat16")
    reader = Reader((tmp_path / "half.bin").read_bytes())
    found = reader.read(tables("Checkpoint")[0], float32="bfloat16")
    assert found["version"] == 5 and reader.at == len(reader.content)
    assert np.array_equal(found["lnfw"], formats.float32_to_bfloat16(tensors["lnfw"]))


@pytest.mark.parametrize("more", [[], ["--save-dtype", "bf16"], ["--shuffle", "0"], ["--optimizer", "muon"]])
def test_state_is_as_the_page_says(program, data, tmp_path, checkpoint, more):
    program.output(*flags(data, tmp_path / "run", *more))
    path = tmp_path / f"run/state_{STEPS:08}_00000.bin"
    P = sum(checkpoint[name].size for name, _ in formats.TENSORS)
    reader = Reader(path.read_bytes(), P=P)
    first, order = tables("Training state")
    if "muon" in more:
        kept = P - sum(checkpoint[name].size for name in ("qkvw", "attprojw", "fcw", "fcprojw"))
        first = [row | {"shape": f"({kept},)"} if row["name"] == "`v`" else row for row in first]
    found = reader.read(first)
    if found["shuffled"]:
        found = reader.read(order)
        assert found["left"] == 625 - found["word"] and found["matrix"].tolist() == [0, 0x9908B0DF]
    assert reader.at == len(reader.content) and found["step"] == STEPS
    assert found["shuffled"] == ("--shuffle" not in more) and found["has_master"] == ("bf16" in more)
    config = formats.read_checkpoint(tmp_path / f"run/model_{STEPS:08}.bin")[0]
    state = formats.read_state(path, config, "muon" if "muon" in more else "adamw")
    assert np.array_equal(found["m"], state.m) and np.array_equal(found["v"], state.v) and found["v"].any()
    assert (found["shard"], found["sample"]) == (state.shard, state.sample)
    if found["shuffled"]:
        assert np.array_equal(found["sample_order"], state.sample_order)
        assert np.array_equal(found["words"], state.rng["words"])


def test_text_files_of_a_run_are_as_the_page_says(whole):
    extra = json.loads((whole / f"extra_{STEPS:08}.json").read_text())
    expect_object(extra, tables("What llm.c's state has no place for")[0], complete=False)
    assert len(extra["loss_window"]) == STEPS and (whole / f"DONE_{STEPS:08}").read_bytes() == b""
    step_table = tables("log.jsonl")[0]
    steps, validations = [], []
    for line in lines(whole / "log.jsonl"):
        (validations if "val_loss" in line else steps).append(line)
    assert [line["step"] for line in steps] == list(range(1, STEPS + 1))
    for line in steps:
        sometimes = {"loss_z": 0.0, "norm_z": 0.0, "skipped": True, "waited_ms": 0.0}
        expect_object(line | sometimes, step_table)
    assert validations and all(line.keys() == {"step", "val_loss"} for line in validations)
    for line in lines(whole / "samples.jsonl"):
        assert line.keys() == {"step", "sample_text"}
    patterns = [r"s:\d+ trl:[\d.]+ lr:[\d.]+ norm:[\d.]+", r"s:\d+ tel:[\d.]+", r"s:\d+ eval:[\d.]+"]
    for pattern, row in zip(patterns, tables("main.log")[0], strict=True):
        assert re.fullmatch(f"`{pattern}`", row["line"])
    for line in (whole / "main.log").read_text().splitlines():
        assert any(re.fullmatch(pattern, line) for pattern in patterns), line
    kept = run_log.read_settings(whole / "run.toml")
    assert kept["n-layer"] == 2 and kept["tokenizer"] == "tokenizer.bin" and len(kept["tokenizer-sha256"]) == 64
    assert not kept.keys() & {"out", "resume", "preset", "dry-run", "trace"}


def test_prepared_text_is_as_the_page_says(tmp_path):
    (tmp_path / "my.txt").write_text("one two three\n" * 400)
    main(["prepare", str(tmp_path / "my.txt"), "--tokenizer", "byte", "--out", str(tmp_path / "data")])
    narrow, wide = tables("Token shard")
    shard = tmp_path / "data/my_train.bin"
    found = Reader(shard.read_bytes()).read(narrow)
    assert np.array_equal(found["tokens"], formats.read_tokens(shard)) and len(found["tokens"]) > 100
    formats.write_tokens(tmp_path / "wide.bin", [7, 100_000], "<u4")
    assert Reader((tmp_path / "wide.bin").read_bytes()).read(wide)["tokens"].tolist() == [7, 100_000]
    expect_object(json.loads((tmp_path / "data/manifest.json").read_text()), tables("manifest.json")[0])


def test_tokenizer_is_as_the_page_says(tmp_path):
    tokens = [bytes([value]) for value in range(256)] + [b"<|a|>", b"<|b|>", b"<|endoftext|>", b"<|c|>"]
    formats.write_tokenizer(tmp_path / "tokenizer.bin", tokens, 258, added=[256, 257, 259])
    reader = Reader((tmp_path / "tokenizer.bin").read_bytes())
    found = reader.read(tables("Tokenizer")[0])
    assert (found["tokens"], found["end_of_text"]) == formats.read_tokenizer(tmp_path / "tokenizer.bin")
    assert found["added"].tolist() == [[256, 257], [259, 259]] and reader.at == len(reader.content)
    assert formats.read_added_tokens(tmp_path / "tokenizer.bin") == [256, 257, 259]
    assert "up to 125;" in PAGE.read_text() and formats.ADDED_RANGES == 125


def test_questions_are_as_the_page_says(tmp_path):
    written = [formats.Choice([1, 2], [[3], [4, 5], [6], [7]], 2), formats.Choice([8], [[9], [10], [11], [12, 13]], 0)]
    formats.write_hellaswag(tmp_path / "questions.bin", written)
    header, example = tables("Questions with four answers")
    reader = Reader((tmp_path / "questions.bin").read_bytes())
    count = reader.read(header)["examples"]
    reader.at = 1024
    for index, choice in enumerate(formats.read_hellaswag(tmp_path / "questions.bin")):
        begin = reader.at
        found = reader.read(example)
        assert (found["index"], found["size"], found["label"]) == (index, reader.at - begin, choice.label)
        assert found["context"].tolist() == choice.context
        assert [found[f"ending{i}"].tolist() for i in range(4)] == choice.endings
    assert count == len(written) and reader.at == len(reader.content)


def test_debug_state_is_as_the_page_says(tmp_path):
    config = formats.ModelConfig(8, 5, 1, 1, 4)
    random = np.random.default_rng(0)
    grads = {name: random.random(shape, np.float32) for name, shape in formats.parameter_shapes(config).items()}
    x = np.arange(6).reshape(2, 3) % 5
    formats.write_debug_state(tmp_path / "debug.bin", x, x, random.random((2, 3, 5), np.float32), 1.5, grads, config)
    reader = Reader((tmp_path / "debug.bin").read_bytes(), V=5, P=formats.num_parameters(config))
    found, read = reader.read(tables("Debug state")[0]), formats.read_debug_state(tmp_path / "debug.bin", config)
    assert reader.at == len(reader.content) and np.array_equal(found["logits"], read.logits)
    assert np.array_equal(found["gradients"], np.concatenate([grad.ravel() for grad in read.grads.values()]))
