"""Prints what llm/arguments.mojo makes of a command line. Run by tests/test_arguments.py."""

from llm.base.formatting import aligned
from llm.cli.arguments import Option, parse_arguments


def main() raises:
    var args = parse_arguments(
        "arguments",
        "Shows its arguments.",
        [
            Option("train-data", "i", "GLOB", "data/*.bin", "token shards"),
            Option("batch-size", "b", "N", "4", "sequences per batch (B)", minimum=1),
            Option("seq-len", "t", "N", "64", "tokens per sequence (T)", minimum=1, maximum=1024),
            Option("learning-rate", "l", "X", "1e-4", "step size"),
            Option("keep", "nk", "N", "0", "checkpoints to keep"),
            Option("schedule", "k", "cosine|linear", "cosine", "of the learning rate"),
            Option("shuffle", "", "0|1", "1", "shuffle the training data"),
            Option("out", "o", "DIR", "", "folder for log and checkpoints"),
            Option("dry-run", "", "", "", "plan only"),
        ],
    )
    print(aligned(args.settings()), end="")
    print("batch-size", args.int("batch-size"))
    print("seq-len", args.int("seq-len"))
    print("learning-rate", args.float("learning-rate"))
    print("keep", args.int("keep"))
    print("schedule", args.choice("schedule"))
    print("shuffle", args.bool("shuffle"))
    print("out", args.string("out"), args.given("out"))
    print("dry-run", args.bool("dry-run"))
