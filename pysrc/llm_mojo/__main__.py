"""The Python side of llm.mojo: data, weights and the PyTorch reference."""

import argparse
import errno
import importlib
import os
import sys

from llm_mojo import Error, version
from llm_mojo.terminal import open_standard_files, plain_output

DESCRIPTION = "Train, sample and evaluate GPT-2 models on the CPU: programs, data, weights and the PyTorch reference."
WORKERS = {  # name: (module with call(words, program): they take the trainer's flags beside their own, what it does)
    "train": ("llm_mojo.train", "train a small GPT on text of your own, or on Python's documentation"),
    "tune": ("llm_mojo.tune", "find good learning rates for a text and a model by many short runs"),
}
PROGRAMS = {  # name: (program that it becomes, what it does)
    "sample": ("sample_gpt2", "continue a prompt with a model, or talk to it"),
    "eval": ("eval_gpt2", "loss and perplexity on token shards, accuracy on HellaSwag"),
    "tokenize": ("tokenize_text", "turn plain text files into token shards natively"),
    "train_gpt2": ("train_gpt2", "the trainer itself, on token shards: what `train` calls in the end"),
    "test": ("test_gpt2", "compare a checkpoint's logits, loss, gradients and steps with PyTorch's"),
}
COMMANDS = {  # name: module with add_arguments(parser) and run(args), what it does
    "prepare": ("llm_mojo.prepare", "turn a data set or a text of your own into token shards"),
    "datasets": ("llm_mojo.datasets", "list the data sets that prepare knows by name"),
    "tokenizer": ("llm_mojo.vocabulary", "make a vocabulary of your own from text: byte-level BPE"),
    "weights": ("llm_mojo.weights", "turn GPT-2 weights from Hugging Face into an llm.c checkpoint"),
    "plot": ("llm_mojo.plot", "draw training and validation loss of one or several runs"),
    "watch": ("llm_mojo.watch", "the loss of a run, while it runs: in the terminal, TensorBoard or Weights & Biases"),
    "serve": ("llm_mojo.serve", "a page to watch, play and look inside, and OpenAI's completions protocol"),
    "export": ("llm_mojo.export", "turn a checkpoint into a folder that Hugging Face loads, or a file for llama.cpp"),
    "reference": ("llm_mojo.reference_command", "write checkpoint, debug state and losses with the PyTorch GPT-2"),
    "bench": ("llm_mojo.bench", "time training beside C, OpenMP and PyTorch, and draw the charts"),
}
EXTRAS = {  # package: extra of pyproject.toml; others: test
    "pyarrow": "data",
    "tokenizers": "data",
    "matplotlib": "plot",
    "gguf": "gguf",
    "starlette": "serve",
    "uvicorn": "serve",
    "plotext": "plot",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
}
INTERRUPTED = 130


def main(argv=None):
    """Runs one command. Returns the exit status: 0, 1 for an explained error, 130 for Ctrl-C (wrong flags exit with 2)."""
    argv = sys.argv[1:] if argv is None else argv
    with plain_output() as streams:
        status = _run(argv)
    lost = [stream.error for stream in streams if stream.error]
    if lost and not status:
        return _complain(f"output was lost: {lost[0].strerror}")
    return status


def _run(argv):
    try:
        if argv and argv[0] in WORKERS:
            importlib.import_module(WORKERS[argv[0]][0]).call(argv[1:], _program())
            return 0
        if argv and argv[0] in PROGRAMS:
            from llm_mojo import native

            native.become(PROGRAMS[argv[0]][0], argv[1:], f"{_program()} {argv[0]}")
        parser, modules = _parse_commands(argv)
        args = parser.parse_args(argv)
        args.argv = argv
        modules[args.command].run(args)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("llm_mojo"):
            raise
        package = (error.name or "").partition(".")[0]
        extra = EXTRAS.get(package, "test")
        from llm_mojo import native

        where = f"'llm-mojo[{extra}]'" if native.is_installed() else f"-e '.[{extra}]'"
        return _complain(f"this needs the Python package {package}; install it with: pip install {where}")
    except Error as error:
        return _complain(error)
    except OSError as error:
        return _complain(_of_the_system(error))
    except KeyboardInterrupt:
        print("\ninterrupted; nothing half-written was kept under its final name", file=sys.stderr)
        return INTERRUPTED
    return 0


def _program():
    """How this was called."""
    return "llm-mojo" if os.path.basename(sys.argv[0]) == "llm-mojo" else "python -m llm_mojo"


def _of_the_system(error):
    """What the system says, after the name of the file."""
    if error.errno is None or error.filename is None:
        return f"{error}"
    hint = {
        errno.ENOSPC: "; make room and run the same command again",
        errno.EDQUOT: "; make room and run the same command again",
        errno.EACCES: "; check whose it is, or choose another place",
        errno.ELOOP: "; its symbolic links lead in a circle",
        errno.ENAMETOOLONG: "; choose a shorter name",
    }.get(error.errno, "")
    return f"{os.fsdecode(error.filename)}: {error.strerror}{hint}"


def _parse_commands(argv):
    """The parser, and the module of the command in use: only that one is imported, so that start-up is quick."""
    parser = argparse.ArgumentParser(prog=_program(), description=DESCRIPTION)
    parser.add_argument("--version", action=_ShowVersion, nargs=0, help="show the version and exit")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    modules = {}
    for name, (_, description) in (WORKERS | PROGRAMS).items():
        subparsers.add_parser(name, help=description)
    for name, (module, description) in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=description, description=description)
        if argv[:1] == [name]:
            modules[name] = importlib.import_module(module)
            modules[name].add_arguments(subparser)
    return parser, modules


class _ShowVersion(argparse.Action):
    """argparse's own action needs the version, which takes time to find, before it is asked for."""

    def __call__(self, parser, namespace, values, option_string=None):
        print(f"llm.mojo {version()}")
        parser.exit()


def _complain(message):
    print(f"error: {message}", file=sys.stderr)
    return 1


def script():
    """The command `llm-mojo`, and `python -m llm_mojo`."""
    open_standard_files()
    sys.exit(main())


if __name__ == "__main__":
    script()
