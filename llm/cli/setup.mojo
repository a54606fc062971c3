"""What the flags of the trainer mean: which training, which model, which data, which tokenizer."""

from std.os.path import dirname, exists, isdir

from llm.base.files import beside, glob_files
from llm.cli.arguments import Arguments
from llm.cli.run_tokenizer import own_tokenizer
from llm.cli.settings import MADE_BY_NOTE, find_preset, read_note
from llm.cpu.adamw import AdamWSettings
from llm.data.loader import DataLoader
from llm.data.manifest import check_manifests
from llm.eval.choices import Choices
from llm.formats.training_state import IN_ORDER
from llm.model.checkpoints import read_config
from llm.model.config import GPT2Config, named_config
from llm.optim.adamw import AdamW
from llm.optim.chosen import ChosenOptimizer
from llm.optim.muon import Muon
from llm.optim.schedule import Schedule
from llm.text.tokenizer import Tokenizer
from llm.train.config import TrainConfig
from llm.train.run_folder import checkpoint_model, complete_checkpoints

comptime PREPARED_HELLASWAG = "data/hellaswag/hellaswag_val.bin"
comptime _MOST_RUNS = 10
"""In a message."""


def check_flags(args: Arguments):
    """Ends the program if flags that are right one by one do not go together."""
    var sizes: List[StaticString] = ["n-layer", "n-head", "n-embd", "block-size", "vocab-size"]
    for size in sizes:
        if args.given_as_flag(size) and args.given_as_flag("init") and not _is_depth(args.string("init")):
            args.fail(String(t"--{size}: the checkpoint {args.string('init')} has its own; leave one of the two out"))
    _ = _passes(args)
    if args.int("val-batches") == 0 and args.int("val-every") > 0:
        args.fail("--val-batches: expected -1 (all) or at least 1, got '0'; --val-every 0 turns validation off")


def checkpoint_to_resume(args: Arguments) raises -> Optional[Int]:
    """Returns the steps of the checkpoint that the run goes on from, if it does.

    Raises:
        If the folder holds a run, and the flags do not say what is to become of it.
    """
    var out = args.string("out")
    if not args.given("out"):
        if args.given("resume") and args.bool("resume"):
            args.fail("--resume 1: expected --out, the folder of the run to go on with")
        return None
    var checkpoints = complete_checkpoints(out)
    if len(checkpoints) == 0 or (args.given("resume") and not args.bool("resume")):
        return None
    var newest = checkpoints[len(checkpoints) - 1]
    if not args.given("resume") and not args.bool("dry-run"):
        raise Error(
            t"{out} holds a run, saved after step {newest}; go on with it (--resume 1), replace it (--resume 0), or"
            t" choose another --out"
        )
    return newest


def starts_at_random(args: Arguments) -> Bool:
    """Tells whether the model starts from random parameters: a depth name, or sizes and no --init."""
    var sizes = args.int("n-layer") + args.int("n-head") + args.int("n-embd") > 0
    return (sizes and not args.given("init")) or _is_depth(args.string("init"))


def _is_depth(name: String) -> Bool:
    """Tells whether a name is one of d6, d12 ..."""
    return name.startswith("d") and name.byte_length() <= 3 and not exists(name)


def initial_checkpoint(args: Arguments, otherwise: String = "") raises -> String:
    """Returns the checkpoint that --init names: of a run the newest; the published models have llm.c's file names.

    What else one can do than download a model, `otherwise`, ends the message.

    Raises:
        If a published model is not here yet, or a folder has no checkpoint.
    """
    var name = args.string("init")
    if isdir(name):
        var steps = complete_checkpoints(name)
        if len(steps) == 0 and exists(name + "/config.json"):
            raise Error(
                t"{name}: a Hugging Face folder, no run; `python -m llm_mojo weights {name} --out {name}.bin` makes a"
                t" checkpoint of it"
            )
        if len(steps) == 0 and len(glob_files(name + "/*/DONE_*")) > 0:
            raise Error(t"{name}: a folder of runs; name one of them, as {dirname(glob_files(name + '/*/DONE_*')[0])}")
        if len(steps) == 0:
            raise Error(t"{name}: no checkpoint in this folder; train one into it: train_gpt2 --out {name}")
        return checkpoint_model(name, steps[len(steps) - 1])
    for known in [("gpt2", "124M"), ("gpt2-medium", "355M"), ("gpt2-large", "774M"), ("gpt2-xl", "1558M")]:
        var path = String(t"gpt2_{known[1]}.bin")
        if (name == known[0] or name == path) and not exists(path):
            raise Error(
                t"{path} is not here; `python -m llm_mojo weights {known[0]}` downloads GPT-2's weights and makes"
                t" it{otherwise}"
            )
        if name == known[0]:
            return path
    if not exists(name) and not _is_depth(name):
        var runs = _runs_beside(name)
        if runs:
            raise Error(t"{name} is not here; the runs with a checkpoint: {runs}")
    return name


def _runs_beside(name: String) raises -> String:
    """Lists the runs in the folder that another one was looked for in, at most ten."""
    var folder = String(dirname(name))
    var found = List[String]()
    for done in glob_files((folder if folder else String("runs")) + "/*/DONE_*"):
        var run = String(dirname(done))
        if run not in found and len(found) < _MOST_RUNS:
            found.append(run)
    return String(", ").join(found)


def model_config(args: Arguments, tokenizer: Optional[Tokenizer]) raises -> GPT2Config:
    """Returns the sizes of the model: the checkpoint's, or those that the flags give.

    Raises:
        If there is no such checkpoint or no such model.
    """
    if not starts_at_random(args):
        return read_config(initial_checkpoint(args, ", and `--init d12` starts a model of GPT-2's size at random"))
    var config = named_config(args.string("init") if args.given("init") else String("d12"))
    var tokens = tokenizer.value().vocab_size if tokenizer else config.vocab_size
    return GPT2Config(
        max_seq_len=_or(args.int("block-size"), args.int("seq-len")),
        vocab_size=_or(args.int("vocab-size"), tokens),
        num_layers=_or(args.int("n-layer"), config.num_layers),
        num_heads=_or(args.int("n-head"), config.num_heads),
        channels=_or(args.int("n-embd"), config.channels),
    )


def _or(value: Int, otherwise: Int) -> Int:
    return value if value > 0 else otherwise


def find_tokenizer(args: Arguments) raises -> Optional[Tokenizer]:
    """Opens the tokenizer file, if there is one.

    Raises:
        If it is not a tokenizer file.
    """
    var path = tokenizer_path(args)
    return Tokenizer(path.value()) if path else Optional[Tokenizer](None)


def tokenizer_path(args: Arguments) raises -> Optional[String]:
    """Finds the tokenizer file: the one named (none if the name is empty), tokenizer.bin beside the data, that of the run
    to start from, or gpt2_tokenizer.bin here.
    """
    if args.given("tokenizer"):
        return None if args.string("tokenizer") == "" else Optional(args.string("tokenizer"))
    for shard in glob_files(args.string("train-data")):
        var path = beside(shard, "tokenizer.bin")
        if exists(path):
            return path
    if not starts_at_random(args):
        var own = own_tokenizer(initial_checkpoint(args))
        if own:
            return own
    return Optional(String("gpt2_tokenizer.bin")) if exists("gpt2_tokenizer.bin") else None


def check_tokenizer(args: Arguments, tokenizer: Optional[Tokenizer], config: GPT2Config) raises:
    """Raises if there is a tokenizer that is not the model's."""
    if tokenizer:
        check_vocabulary(tokenizer.value(), config, "; --tokenizer '' is none" if not args.given("tokenizer") else "")


def check_vocabulary(tokenizer: Tokenizer, config: GPT2Config, otherwise: String = "") raises:
    """Raises if a tokenizer is not the model's. What else one can do, `otherwise`, ends the message."""
    if tokenizer.vocab_size != config.vocab_size:
        raise Error(
            t"the tokenizer {tokenizer.path} has {tokenizer.vocab_size} tokens, the model {config.vocab_size}; give the"
            t" tokenizer that the model was trained with (--tokenizer), or another model (--init){otherwise}"
        )


def check_resumed(args: Arguments, config: GPT2Config):
    """Ends the program if a flag asks for another model than the one of the checkpoint that the run goes on from."""
    var names: List[StaticString] = ["n-layer", "n-head", "n-embd", "block-size", "vocab-size"]
    var sizes = [config.num_layers, config.num_heads, config.channels, config.max_seq_len, config.vocab_size]
    for i in range(len(names)):
        var given = args.int(names[i])
        if args.given_as_flag(names[i]) and given > 0 and given != sizes[i]:
            args.fail(
                String(
                    t"--{names[i]} {given}: the checkpoint to go on from has {sizes[i]}; leave the flag out, or train"
                    t" another model into another --out"
                )
            )


def training_data(args: Arguments, config: GPT2Config, replica: Int) raises -> DataLoader:
    """Opens the training shards, or to overfit the validation shards in order, for one of the replicas."""
    if args.bool("overfit"):
        return _open_data(args, "val-data", config, IN_ORDER, replica, _replicas(args))
    return _open_data(args, "train-data", config, args.int("shuffle"), replica, _replicas(args))


def validation_data(args: Arguments, config: GPT2Config) raises -> DataLoader:
    """Opens the validation shards; a run that never validates needs none and gets the training shards in their place.
    """
    if args.int("val-every") > 0:
        return _open_data(args, "val-data", config, IN_ORDER)
    return _open_data(args, "train-data", config, IN_ORDER)


def data_are_here(args: Arguments) raises -> Bool:
    """Tells whether there are files of the names that the data have.

    Raises:
        If a folder on the way cannot be read.
    """
    return len(glob_files(args.string("train-data"))) > 0 and len(glob_files(args.string("val-data"))) > 0


def _open_data(
    args: Arguments, name: StaticString, config: GPT2Config, order: Int, replica: Int = 0, replicas: Int = 1
) raises -> DataLoader:
    if not args.given(name) and not exists(args.string(name)):
        raise Error(t"{args.string(name)} is not here; `python prepro_tinyshakespeare.py` makes it")
    if args.given("preset") and len(glob_files(args.string(name))) == 0:
        var made_by = read_note(find_preset(args.string("preset")), MADE_BY_NOTE)
        if made_by and not args.given_as_flag(name):
            raise Error(t"{args.string(name)}: the data of this preset are not here; make them with: {made_by.value()}")
    check_manifests(args.string(name), tokenizer_path(args), config.vocab_size)
    var B, T = args.int("batch-size"), args.int("seq-len")
    return DataLoader(
        args.string(name),
        B,
        T,
        vocab_size=config.vocab_size,
        order=order,
        seed=args.int("seed"),
        rank=replica,
        num_processes=replicas,
    )


def open_hellaswag(
    args: Arguments, config: GPT2Config, context: Int, tokenizer: Optional[String]
) raises -> Optional[Choices]:
    """Opens the file that --hellaswag names, if it does; llm.c's `-h 1` stands for the one that `prepare` makes.

    Raises:
        If it is not such a file, was made with another tokenizer than this file, or an example does not fit into the
        context.
    """
    var path = args.string("hellaswag")
    if not args.given("hellaswag") or path == "0":
        return None
    if path == "1":
        path = PREPARED_HELLASWAG
        if not exists(path):
            raise Error(t"{path} is not here; `python -m llm_mojo prepare hellaswag` makes it")
    check_manifests(path, tokenizer, config.vocab_size)
    return Choices(path, vocab_size=config.vocab_size, context=context)


def train_config(args: Arguments, batches: Int) raises -> TrainConfig:
    """Returns what the flags say of the training, where an epoch has so many batches of B*T tokens.

    Raises:
        If values that are right one by one make no sense together.
    """
    var passes = _passes(args)
    var steps = args.int("max-steps")
    var config = TrainConfig(
        steps=steps if steps >= 0 else max(batches // passes, 1),
        passes=passes,
        replicas=_replicas(args),
        schedule=Schedule(
            args.choice("schedule"),
            peak=args.float("learning-rate"),
            warmup=args.int("warmup"),
            final_fraction=args.float("final-lr-fraction"),
        ),
        grad_clip=args.float("grad-clip"),
        skip_loss_z=args.float("skip-loss-z"),
        skip_norm_z=args.float("skip-norm-z"),
        dropout=args.float("dropout"),
        overfit=args.bool("overfit"),
        val_batches=args.int("val-batches"),
        seed=args.int("seed"),
    )
    config.validate()
    return config^


def optimizer(args: Arguments, config: GPT2Config) raises -> ChosenOptimizer:
    """Returns the optimizer that the flags describe.

    Raises:
        If the system has no room for its state.
    """
    var settings = AdamWSettings(
        beta1=Float32(args.float("beta1")),
        beta2=Float32(args.float("beta2")),
        weight_decay=Float32(args.float("weight-decay")),
    )
    var adamw = AdamW(config, settings, decay_all=args.bool("decay-all"))
    if args.choice("optimizer") == "adamw":
        return ChosenOptimizer(adamw^)
    var peak = args.float("learning-rate")
    if peak == 0:
        args.fail("--optimizer muon: expected a --learning-rate above 0, which its schedule is a part of")
    var muon_rate = Float32(args.float("muon-rate") / peak)
    return ChosenOptimizer(adamw^, Muon(config, settings.weight_decay), muon_rate=muon_rate)


def _replicas(args: Arguments) -> Int:
    return args.int("replicas") if args.given("replicas") else 1


def _passes(args: Arguments) -> Int:
    """Returns over how many passes of B*T tokens a replica accumulates; a total that is no multiple ends the program.
    """
    var tokens = args.int("batch-size") * args.int("seq-len") * _replicas(args)
    var total = args.int("total-batch-size")
    if total % tokens != 0:
        var factors = String(t"B*T = {args.int('batch-size')}*{args.int('seq-len')}")
        if _replicas(args) > 1:
            factors = String(t"B*T*replicas = {args.int('batch-size')}*{args.int('seq-len')}*{_replicas(args)}")
        args.fail(
            String(
                t"--total-batch-size: expected a multiple of {factors} = {tokens}, got {total}; the nearest are"
                t" {total // tokens * tokens} and {(total // tokens + 1) * tokens}"
            )
        )
    return max(total // tokens, 1)
