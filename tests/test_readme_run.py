"""The README followed line by line in a fresh clone: each command works, and none loses what another has made.

What needs published weights, and what other tests run, is left out by name. LLM_MOJO_CACHE, if it is set, has the text that
some commands download.
"""

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from mojo_programs import ROOT
from test_readme import LINES, STARTS

WEIGHTS = "published weights: a hub"
TEXT = "a text from a web server, unless LLM_MOJO_CACHE has it"
OTHERS = {
    "make finetune": WEIGHTS,
    "python -m llm_mojo weights gpt2": WEIGHTS,
    "mojo train_gpt2.mojo": WEIGHTS,
    "python -m llm_mojo reference": WEIGHTS,
    "mojo test_gpt2.mojo": WEIGHTS,
    'mojo sample_gpt2.mojo -e gpt2 --prompt "The meaning of life is" --temperature 0.7 --top-p 0.9 --num-samples 3': WEIGHTS,
    "mojo eval_gpt2.mojo -e gpt2_124M.bin -h data/hellaswag/hellaswag_val.bin --limit 500": WEIGHTS,
    "python prepro_tinyshakespeare.py": TEXT,
    "make shakespeare": TEXT,
    "make test": "these tests themselves",
}
CACHE = Path(os.environ.get("LLM_MOJO_CACHE", "none"), "tinyshakespeare", "input.txt")


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clone") / "llm.mojo"
    subprocess.run(["git", "clone", "-q", ROOT, folder], check=True)
    text = "".join(
        f"Once upon a time, in the year {year}, a king had {year % 7} daughters.\n\n" for year in range(4000)
    )
    (folder / "my.txt").write_text(text)
    (folder / "corpus").mkdir()
    for name in "a.txt", "b.md":
        (folder / "corpus" / name).write_text(text)
    (folder / "prompt.txt").write_text("class ")
    return folder


def models(folder):
    """The models of all runs, by their bytes."""
    return {
        f"{path.relative_to(folder)}": hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.glob("runs/*/model_*.bin")
    }


@pytest.mark.long
def test_the_readme_line_by_line(clone):
    path = f"{clone / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "PYTHON"))
    }
    environment |= {"PATH": path, "MODULAR_TELEMETRY_ENABLED": "0"}
    ran = []
    for line in LINES:
        if (
            not line.startswith((*STARTS, ".venv/bin/"))
            or line in OTHERS
            and not (OTHERS[line] == TEXT and CACHE.is_file())
        ):
            continue
        before = models(clone)
        result = subprocess.run(
            ["bash", "-c", line],
            cwd=clone,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=1200,
        )
        assert result.returncode == 0, f"{line}\n{result.stdout[-2000:]}\n{result.stderr[-2000:]}"
        after = models(clone)
        assert before.items() <= after.items(), f"{line} has lost {sorted(before.keys() - after.keys())}"
        ran.append(line)
    assert len(ran) >= 10, ran
    assert len(models(clone)) >= 6 and (clone / "runs" / "pydocs").is_dir()
