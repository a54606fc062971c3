"""The Python side of llm.mojo: data, weights and the PyTorch reference. `python -m llm_mojo --help` lists the commands."""


class Error(Exception):
    """An error that a user can do something about: shown as its message, without a traceback, exit status 1."""
