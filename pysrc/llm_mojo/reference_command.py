"""The command `python -m llm_mojo reference`: its options, which can be asked for without PyTorch."""

import argparse

PRESETS = {  # name: layers, heads, channels; the depths of llm.c and the names of the published models
    "d6": (6, 6, 384),
    "d12": (12, 12, 768),
    "d24": (24, 16, 1024),
    "d36": (36, 20, 1280),
    "d48": (48, 25, 1600),
    "d60": (60, 30, 1920),
    "gpt2": (12, 12, 768),
    "gpt2-medium": (24, 16, 1024),
    "gpt2-large": (36, 20, 1280),
    "gpt2-xl": (48, 25, 1600),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `python -m llm_mojo reference`."""
    weights = parser.add_argument_group("weights: an existing checkpoint, or random ones of a named or given size")
    weights.add_argument("--checkpoint", metavar="FILE", help="existing llm.c checkpoint (default gpt2_124M.bin)")
    weights.add_argument("--init", choices=PRESETS, help="random initialisation at these sizes")
    for option, what in [
        ("--n-layer", "layers"),
        ("--n-head", "heads"),
        ("--n-embd", "channels"),
        ("--block-size", "longest context"),
        ("--vocab-size", "tokens in the vocabulary"),
    ]:
        weights.add_argument(option, type=int, metavar="N", help=f"random initialisation: {what}")
    weights.add_argument("--seed", type=int, default=0, metavar="N", help="of random weights and tokens (default 0)")
    weights.add_argument(
        "--spread", action="store_true", help="random biases and layernorms too, and larger weights: a sharper test"
    )
    batch = parser.add_argument_group("batch")
    batch.add_argument("--data", metavar="FILE", help="token shard whose first tokens are the batch (default random)")
    batch.add_argument("-b", "--batch-size", type=int, default=4, metavar="B", help="sequences (default 4)")
    batch.add_argument("-t", "--seq-len", type=int, default=64, metavar="T", help="tokens in a sequence (default 64)")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32", help="of the arithmetic")
    parser.add_argument(
        "--name",
        metavar="PREFIX",
        help="writes PREFIX.bin, PREFIX_debug_state.bin, PREFIX_losses.txt (default: the checkpoint's, or gpt2_124M)",
    )
    parser.add_argument("--force", action="store_true", help="replace an existing PREFIX.bin by random weights")


def run(args: argparse.Namespace) -> None:
    """Runs the command."""
    from llm_mojo import reference

    reference.run(args)
