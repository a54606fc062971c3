"""Train, sample and look into GPT-2s from Python: `GPT2`, `Tokenizer`, `AdamW`, `train`, `prepare`, `export`, `plot`.

    model = llm_mojo.GPT2.from_pretrained("runs/pydocs")

`python -m llm_mojo --help` lists the commands.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm_mojo.model import GPT2, AdamW, GPT2Config, Muon
    from llm_mojo.text import Tokenizer

# What is here under its name: the module that has it, which is imported when it is asked for.
_PLACES = {"GPT2": "model", "GPT2Config": "model", "AdamW": "model", "Muon": "model", "Tokenizer": "text"}
_FUNCTIONS = "train", "prepare", "export", "plot"
__all__ = ["GPT2", "AdamW", "Error", "GPT2Config", "Muon", "Tokenizer"]


class Error(Exception):
    """An error that a user can do something about: shown as its message, without a traceback, exit status 1."""


def version():
    """The version of the installed package, or of the checkout where none is installed: pyproject.toml's either way."""
    # Here, so that other commands do not wait for it.
    import importlib.metadata
    import re
    from pathlib import Path

    try:
        return importlib.metadata.version("llm-mojo")
    except importlib.metadata.PackageNotFoundError:
        text = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text()
        return re.search(r'^version = "(.+)"$', text, re.M)[1]  # type: ignore[index]  # it has one


def __getattr__(name: str) -> Any:
    import importlib

    if name in _PLACES:
        return getattr(importlib.import_module(f"llm_mojo.{_PLACES[name]}"), name)
    if name in _FUNCTIONS:
        return importlib.import_module(f"llm_mojo.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
