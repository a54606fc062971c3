"""The commands of README and guides: each is one that there is, with flags that it takes."""

import argparse
import importlib
import re
import shlex

import pytest

from llm_mojo.__main__ import COMMANDS
from mojo_programs import ROOT

STARTS = ("make ", "python -m llm_mojo ", "mojo ", "python ", "llm-mojo ", "build/")


def lines_of(page):
    """The lines of the blocks of code of a page, without their comments."""
    blocks = re.findall(r"^ *```\w*\n(.*?)^ *```", page.read_text(), re.M | re.S)
    return [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines()]


LINES = lines_of(ROOT / "README.md")
GUIDES = [line for page in [ROOT / "docs/index.md", *(ROOT / "docs/guides").glob("*.md")] for line in lines_of(page)]
FOUND = sorted({line for line in [*LINES, *GUIDES] if line.startswith(STARTS)})


def flags_of(program):
    """The flags of a Mojo program, from its table of options."""
    sources = [ROOT / f"{program}.mojo", *([ROOT / "llm/cli/options.mojo"] if program == "train_gpt2" else [])]
    table = re.findall(r'Option\(\s*"([\w-]+)",\s*"(\w*)"', "".join(path.read_text() for path in sources))
    return {f"--{name}" for name, _ in table} | {f"-{letter}" for _, letter in table if letter}


def test_commands_are_found():
    assert len(FOUND) > 15 and any("llm_mojo" in line for line in FOUND) and any("mojo " in line for line in FOUND)


@pytest.mark.parametrize("command", FOUND)
def test_a_command_of_the_readme(command):
    words = shlex.split(re.sub(r"\$'(.*?)'", r"'\1'", command.partition(" < ")[0]))
    if words[0] == "llm-mojo":
        words = ["python", "-m", "llm_mojo", *words[1:]]
    if words[0].startswith("build/"):
        words = ["mojo", f"{words[0].removeprefix('build/')}.mojo", *words[1:]]
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):.*?## ", (ROOT / "Makefile").read_text(), re.M)
        assert words[1] in targets
        assert all(re.match(r"[A-Z]+=", word) for word in words[2:])
        return
    if words[0] == "mojo":
        program, words = words[1].removesuffix(".mojo"), words[2:]
        assert (ROOT / f"{program}.mojo").is_file()
        assert not {word.partition("=")[0] for word in words if word.startswith("-")} - flags_of(program)
        return
    if words[1] != "-m":
        assert (ROOT / words[1]).is_file()
        return
    name, words = words[3], words[4:]
    if name in ("train", "tune"):
        own = {"--out", "--replace", "--tokenizer", "--preset", "--minutes", "--np"}
        assert not {word for word in words if word.startswith("--")} - own - flags_of("train_gpt2")
    elif name in COMMANDS:
        parser = argparse.ArgumentParser()
        importlib.import_module(COMMANDS[name][0]).add_arguments(parser)
        parser.parse_args(words)
    else:
        from llm_mojo.__main__ import PROGRAMS

        assert not {word for word in words if word.startswith("-")} - flags_of(PROGRAMS[name][0])
