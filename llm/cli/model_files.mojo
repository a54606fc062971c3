"""The files of a trained model, by what a user calls it: a checkpoint, the folder of a run, or a published model."""

from std.os.path import dirname, exists

from llm.cli.arguments import Arguments
from llm.cli.options import options
from llm.cli.run_tokenizer import expect_own_tokenizer, own_tokenizer
from llm.cli.settings import RUN_SETTINGS, read_settings
from llm.cli.setup import find_tokenizer, initial_checkpoint
from llm.text.tokenizer import Tokenizer


def model_checkpoint(args: Arguments) raises -> String:
    """Returns the checkpoint that --init names: of a run the newest.

    Raises:
        If a published model is not here yet, or a folder has no checkpoint.
    """
    return initial_checkpoint(args, "; to use a model of your own, name its run: --init runs/NAME")


def model_tokenizer(args: Arguments, checkpoint: String) raises -> Tokenizer:
    """Opens the tokenizer that --tokenizer names, or the one that the checkpoint's run has kept, or one beside it.

    Raises:
        If there is none, it is not a tokenizer file, or not the one that the checkpoint was trained with.
    """
    var tokenizer = _find_tokenizer(args, checkpoint)
    expect_own_tokenizer(tokenizer.path, checkpoint)
    return tokenizer^


def _find_tokenizer(args: Arguments, checkpoint: String) raises -> Tokenizer:
    if args.given("tokenizer"):
        return Tokenizer(args.string("tokenizer"))
    var kept = own_tokenizer(checkpoint)
    if kept:
        return Tokenizer(kept.value())
    var folder = dirname(checkpoint)
    if folder.byte_length() == 0:
        folder = "."
    var settings = folder + "/" + RUN_SETTINGS
    if exists(settings):
        var run = Arguments("train_gpt2", "", options())
        read_settings(run, settings)
        var found = find_tokenizer(run)
        if found:
            return found.take()
    # What `weights` writes for a folder, what `prepare` writes, and what `weights` writes for a published model.
    var own = checkpoint.removesuffix(".bin") + "_tokenizer.bin"
    for path in [own, folder + "/tokenizer.bin", folder + "/gpt2_tokenizer.bin", String("gpt2_tokenizer.bin")]:
        if exists(path):
            return Tokenizer(path)
    raise Error(
        t"no tokenizer beside {checkpoint}; name the one that the model was trained with (--tokenizer FILE);"
        t" `python -m llm_mojo weights gpt2` makes GPT-2's"
    )
