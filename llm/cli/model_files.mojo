"""The files of a trained model, by what a user calls it: a checkpoint, the folder of a run, or a published model."""

from std.os.path import dirname, exists, isdir

from llm.cli.arguments import Arguments
from llm.cli.options import RUN_SETTINGS, options
from llm.cli.settings import read_settings
from llm.cli.setup import find_tokenizer, initial_checkpoint
from llm.text.tokenizer import Tokenizer
from llm.train.run_folder import checkpoint_model, complete_checkpoints


def model_checkpoint(args: Arguments) raises -> String:
    """Returns the checkpoint that --init names: of a run the newest.

    Raises:
        If a published model is not here yet, or a folder has no checkpoint.
    """
    var name = args.string("init")
    if not isdir(name):
        return initial_checkpoint(args, "; to use a model of your own, name its run: --init runs/NAME")
    var steps = complete_checkpoints(name)
    if len(steps) == 0:
        raise Error(t"{name}: no checkpoint in this folder; train one into it: train_gpt2 --out {name}")
    return checkpoint_model(name, steps[len(steps) - 1])


def model_tokenizer(args: Arguments, checkpoint: String) raises -> Tokenizer:
    """Opens the tokenizer that --tokenizer names, or the one that the checkpoint's run trained with, or one beside it.

    Raises:
        If there is none, or it is not a tokenizer file.
    """
    if args.given("tokenizer"):
        return Tokenizer(args.string("tokenizer"))
    var folder = dirname(checkpoint)
    if folder.byte_length() == 0:
        folder = "."
    var settings = folder + "/" + RUN_SETTINGS
    if exists(settings):
        var run = Arguments("train_gpt2", "", options())
        read_settings(run, settings)
        var trained_with = find_tokenizer(run)
        if trained_with:
            return trained_with.take()
    # What `weights` writes for a folder, what `prepare` writes, and what `weights` writes for a published model.
    var own = checkpoint.removesuffix(".bin") + "_tokenizer.bin"
    for path in [own, folder + "/tokenizer.bin", folder + "/gpt2_tokenizer.bin", String("gpt2_tokenizer.bin")]:
        if exists(path):
            return Tokenizer(path)
    raise Error(
        t"no tokenizer beside {checkpoint}; name the one that the model was trained with (--tokenizer FILE);"
        t" `python -m llm_mojo weights gpt2` makes GPT-2's"
    )
