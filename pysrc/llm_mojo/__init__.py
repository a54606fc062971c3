"""The Python side of llm.mojo: data, weights and the PyTorch reference. `python -m llm_mojo --help` lists the commands."""


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
