"""The site: its tutorial is run from the first line to the last, and what pages print is compared with what they say is printed.

Chapters build on each other, so all are one program in one process. A `text` block after a `python` block is its whole output. What is
not run: blocks of the shell (they install packages, or train for minutes; tests/test_wheel.py and tests/test_train.py run the same
commands), and Mojo, which is quoted from its source when the site is built. `make test-docs` runs all of this file.
"""

import contextlib
import io
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
CHAPTERS = sorted((DOCS / "gpt").glob("*.md"))
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


@pytest.mark.long
def test_tutorial_runs_and_prints_what_it_says():
    assert len(CHAPTERS) == 8
    names: dict = {"__name__": "tutorial"}
    for page in CHAPTERS:
        for at, code, promised in snippets(page):
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile("\n" * (at - 1) + code, str(page), "exec"), names)
            if promised is not None:
                assert printed.getvalue() == promised, f"{page.name}:{at}"
    assert [round(float(x), 1) for x in names["losses"][:1]] == [round(float(names["np"].log(names["V"])), 1)]
    assert names["losses"][-1] < 2.8


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
