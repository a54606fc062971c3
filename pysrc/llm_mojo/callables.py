"""Commands as functions: `llm_mojo.prepare("my.txt", tokenizer="gpt2")` is `llm-mojo prepare my.txt --tokenizer gpt2`."""

import argparse
import importlib
import sys
import types
from collections.abc import Callable
from typing import Any

from llm_mojo import Error


def callable_module(name: str, function: Callable) -> None:
    """Makes a module that is called do what a function does: the package has both under one name."""

    class Callable(types.ModuleType):
        def __call__(self, *arguments: Any, **settings: Any) -> Any:
            return function(*arguments, **settings)

    sys.modules[name].__class__ = Callable


def as_option(name: str) -> str:
    """The flag that a setting stands for: `val_tokens` for --val-tokens."""
    return f"--{name.replace('_', '-')}"


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise Error(f"{self.prog}: {message}")


def run_command(name: str, *texts: Any, **settings: Any) -> None:
    """Runs a command: positional words, and flags by their names. True is a flag without a value, a list several values.

    Raises Error where the command would end with a message.
    """
    words = [f"{text}" for text in texts]
    for setting, value in settings.items():
        if value is None or value is False:
            continue
        values = [] if value is True else value if isinstance(value, (list, tuple)) else [value]
        words += [as_option(setting), *map(str, values)]
    module = importlib.import_module(f"llm_mojo.{name}")
    parser = _Parser(prog=name)
    module.add_arguments(parser)
    args = parser.parse_args(words)
    args.argv = [name, *words]
    module.run(args)
