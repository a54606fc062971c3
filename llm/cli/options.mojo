"""The flags of the trainer: one table, from which parsing, help, presets and `run.toml` come."""

from std.os.path import exists
from std.sys import argv

from llm.base.files import absolute_path, absolute_pattern
from llm.cli.arguments import Arguments, Option, command_line, parse_arguments
from llm.cli.settings import (
    RUN_SETTINGS,
    RUN_TOKENIZER,
    TOKENIZER_NOTE,
    find_preset,
    flags_only,
    read_settings,
    write_settings,
)
from llm.cli.shell import shell_command, shell_word


def trainer_arguments() raises -> Arguments:
    """Returns the settings of a run: defaults, then the preset's, then on resuming the run's own, then the flags'.

    A mistake ends the program with status 2.
    """
    var args = parse_arguments("train_gpt2", "Trains a GPT-2 on the CPU.", options())
    try:
        var changed = False
        if args.given("preset"):
            read_settings(args, find_preset(args.string("preset")))
            changed = True
        var own = args.string("out") + "/" + RUN_SETTINGS
        if args.given("out") and args.given("resume") and args.bool("resume") and exists(own):
            read_settings(args, own)
            changed = True
        if changed:
            args.parse(command_line())
    except error:
        args.fail(String(error))
    args.check()
    if args.given("out") and args.string("out") == "":
        args.fail("--out: expected the name of a folder, got ''; leave it out to keep nothing")
    # Settings in files are TOML, which is UTF-8.
    for option in args.options:
        var goes_to_file = args.given("out") and option.name not in flags_only()
        # The run's own copy is called by its name alone.
        if option.name == "tokenizer":
            goes_to_file = goes_to_file and args.given_as_flag("tokenizer")
        if goes_to_file and not _is_utf8(args.string(option.name)):
            args.fail(
                String(
                    t"--{option.name}: expected a text in UTF-8, which run.toml can hold, got"
                    t" '{args.string(option.name)}'; rename it"
                )
            )
    return args^


def _is_utf8(text: String) -> Bool:
    try:
        _ = String(from_utf8=text.as_bytes())
        return True
    except:
        return False


def save_settings(args: Arguments, folder: String, checkpoint: String, tokenizer_sha256: Optional[String]) raises:
    """Writes `FOLDER/run.toml`: what the run was called with, and all that follows from it, wherever it will be read.

    `checkpoint` is what it starts from, or empty; the hash is that of the copy of its tokenizer that lies there, if any.

    Raises:
        If the file cannot be written.
    """
    var words = List[String]()
    for word in argv():
        words.append(String(word))
    var path = folder + "/" + RUN_SETTINGS
    var go_on = shell_command([words[0], "-o", folder, "-y", "1"])
    var heading = String(
        t"# {shell_command(words)}\n# To go on with it: {go_on}\n# To repeat the run: --preset {shell_word(path)} --out"
        t" ANOTHER_FOLDER\n"
    )
    var without = flags_only()
    # Sizes and a default --init would contradict each other when they are read again.
    if not args.given("init") and args.int("n-layer") + args.int("n-head") + args.int("n-embd") > 0:
        without.append("init")
    var instead = List[Tuple[String, String]]()
    var notes = List[Tuple[String, String]]()
    var patterns: List[StaticString] = ["train-data", "val-data"]
    var files: List[StaticString] = ["tokenizer", "hellaswag"]
    for name in patterns:
        instead.append((String(name), absolute_pattern(args.string(name))))
    for name in files:
        if exists(args.string(name)):
            instead.append((String(name), absolute_path(args.string(name))))
    if checkpoint:
        instead.append((String("init"), absolute_path(checkpoint)))
    if tokenizer_sha256:
        instead.append((String("tokenizer"), String(RUN_TOKENIZER)))
        notes.append((String(TOKENIZER_NOTE), tokenizer_sha256.value()))
    write_settings(args, path, heading, without, instead, notes)


def options() -> List[Option]:
    """Lists the flags, with the letters of llm.c's train_gpt2.cu and the defaults of its CPU program."""
    return [
        Option("preset", "", "NAME|FILE", "", "settings from presets/NAME.toml or FILE; flags count more"),
        # files
        Option(
            "train-data", "i", "GLOB", "data/tinyshakespeare/tiny_shakespeare_train.bin", "token shards to train on"
        ),
        Option("val-data", "j", "GLOB", "data/tinyshakespeare/tiny_shakespeare_val.bin", "token shards to validate on"),
        Option(
            "tokenizer",
            "",
            "FILE",
            "",
            "default: the data's, --init's, or gpt2_tokenizer.bin; '': none, and no samples",
        ),
        Option("out", "o", "DIR", "", "folder for logs, settings and checkpoints (default: keep nothing)"),
        Option(
            "checkpoint-every",
            "n",
            "N",
            "",
            "steps between checkpoints; 0: at the end (default: at validations, 5 minutes apart)",
        ),
        Option("save-dtype", "", "fp32|bf16", "fp32", "of model_*.bin (llm.c's version 3 or 5); the state keeps fp32"),
        Option("keep", "nk", "N", "", "newest checkpoints to keep; 0: all (default: 2; with -n all)"),
        Option("resume", "y", "0|1", "", "1: go on from the newest checkpoint in --out; 0: replace what is there"),
        # model
        Option(
            "init",
            "e",
            "MODEL",
            "gpt2_124M.bin",
            "FILE.bin, run, gpt2..gpt2-xl, or d6..d60 at random",
        ),
        Option("n-layer", "", "N", "0", "layers of a model that starts at random (0: as --init dN, or d12)"),
        Option("n-head", "", "N", "0", "its attention heads (0: likewise)"),
        Option("n-embd", "", "N", "0", "its width (0: likewise)"),
        Option("block-size", "", "N", "0", "its longest context (0: as --seq-len)"),
        Option("vocab-size", "", "N", "0", "its vocabulary (0: the tokenizer's, or GPT-2's)"),
        # batches and steps
        Option("batch-size", "b", "N", "4", "sequences per pass (B)", minimum=1),
        Option("seq-len", "t", "N", "64", "tokens per sequence (T)", minimum=1),
        Option("total-batch-size", "d", "N", "0", "tokens per step, accumulated over passes (0: one pass, B*T)"),
        Option("replicas", "", "N", "", "parts of a batch, shared out over ranks (default: one for each)", minimum=1),
        Option("max-steps", "x", "N", "40", "steps to train (-1: one epoch)", minimum=-1),
        Option(
            "max-minutes",
            "",
            "X",
            "0",
            "minutes from start to end, instead of --max-steps (0: no limit)",
        ),
        Option("step-plan", "", "PLAN", "", "steps that --max-minutes has chosen, STEP:STEPS,..: run.toml has it"),
        Option("overfit", "a", "0|1", "0", "1: train on the first batch of the validation data over and over"),
        Option(
            "shuffle", "", "0|1|2", "1", "1: as llm.c shuffles; 2: random windows, as nanoGPT; 0: in order", maximum=2
        ),
        Option("seed", "", "N", "1337", "seed of initialisation, random windows, dropout and samples"),
        Option("dropout", "", "X", "0", "probability of dropout in training, as in GPT-2 (0: none)", maximum=0.99),
        # optimizer
        Option("learning-rate", "l", "X", "1e-4", "learning rate of AdamW"),
        Option("optimizer", "", "adamw|muon", "adamw", "muon: for the blocks' matrices; AdamW for everything else"),
        Option("muon-rate", "", "X", "0.01", "learning rate of Muon; follows the schedule of --learning-rate"),
        Option("schedule", "k", "cosine|linear|constant|wsd", "constant", "shape of the learning rate over the run"),
        Option("warmup", "u", "N", "0", "steps over which the learning rate rises to its full value"),
        Option("final-lr-fraction", "q", "X", "1.0", "part of the learning rate that is left at the end", maximum=1),
        Option("beta1", "", "X", "0.9", "decay of AdamW's first moment", maximum=0.99999),
        Option("beta2", "", "X", "0.999", "decay of AdamW's second moment", maximum=0.9999999),
        Option("weight-decay", "c", "X", "0", "weight decay of AdamW, on matrices and embeddings"),
        Option("decay-all", "", "", "", "weight decay on every tensor, as llm.c's CPU program has it"),
        Option("grad-clip", "", "X", "0", "longest gradient; a longer one is scaled down to it (0: any)"),
        Option("skip-loss-z", "sl", "X", "0", "skip the update if the loss is an outlier, by z-score (0: never)"),
        Option("skip-norm-z", "sg", "X", "0", "skip the update if the gradient's norm is an outlier (0: never)"),
        # evaluation
        Option("val-every", "v", "N", "10", "steps between validations (0: never)"),
        Option("val-batches", "m", "N", "5", "batches of a validation (-1: all)", minimum=-1),
        Option("patience", "", "N", "0", "stop after so many validations without a lower loss (0: never)"),
        Option("hellaswag", "h", "FILE", "", "HellaSwag file to evaluate at every validation (1: the prepared one)"),
        Option("hellaswag-limit", "", "N", "0", "its examples to evaluate, from the first on (0: all)"),
        Option("sample-every", "s", "N", "20", "steps between samples (0: never)"),
        Option("gen-len", "g", "N", "64", "tokens of a sample"),
        # machine
        Option("dtype", "", "fp32|bf16", "fp32", "what matrix products read; sums, weights and AdamW stay fp32"),
        Option("recompute", "", "0|1", "0", "1: a tenth of the activations, computed again in backward; same results"),
        Option("threads", "", "N", "0", "threads to use (0: one for each core)"),
        Option("zero-stage", "z", "0|1", "1", "1: each rank keeps its share of the optimizer's state; 0: all of it"),
        Option("state-parts", "", "0|1", "0", "1: each rank saves its share itself, in an --out that all ranks have"),
        Option("trace", "", "FILE", "", "what each thread did, for ui.perfetto.dev (in a build with -D TRACE)"),
        Option("dry-run", "", "", "", "print sizes, memory and estimated time; train nothing"),
    ]
