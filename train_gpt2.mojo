"""Trains a GPT-2. Without flags it does llm.c's job: GPT-2 124M on tiny shakespeare; `--help` lists the flags."""

from std.math import isfinite
from std.os.path import dirname, exists
from std.sys import exit, stderr
from std.time import perf_counter_ns

from llm.arguments import Arguments, Option, parse_arguments
from llm.checkpoint import read_config, read_parameters, write_checkpoint
from llm.config import GPT2Config, named_config
from llm.cpu.adamw import AdamW
from llm.cpu.parallel import available_threads
from llm.dataloader import DataLoader
from llm.files import glob_files
from llm.generate import generate
from llm.gpt2 import GPT2
from llm.memory import Arena, Tensor, aligned_bytes
from llm.report import Report, Step, Validation, aligned, fixed, grouped
from llm.sampler import Sampler
from llm.schedule import Schedule
from llm.tensors import parameter_bytes
from llm.tokenizer import Tokenizer

comptime F32 = DType.float32
comptime I32 = DType.int32


def options() -> List[Option]:
    var data = String("data/tinyshakespeare/tiny_shakespeare")
    return [
        Option("train-data", "i", "GLOB", data + "_train.bin", "token shards to train on"),
        Option("val-data", "j", "GLOB", data + "_val.bin", "token shards to validate on"),
        Option("tokenizer", "", "FILE", "", "prints the samples (default: tokenizer.bin beside the data)"),
        Option("init", "e", "MODEL", "gpt2_124M.bin", "checkpoint FILE.bin, gpt2..gpt2-xl, or d6..d60 at random"),
        Option("n-layer", "", "N", "0", "layers of a model that starts at random"),
        Option("n-head", "", "N", "0", "attention heads of a model that starts at random"),
        Option("n-embd", "", "N", "0", "width of a model that starts at random"),
        Option("block-size", "", "N", "0", "longest context of a model that starts at random (0: as --seq-len)"),
        Option("vocab-size", "", "N", "0", "its vocabulary (0: the tokenizer's)"),
        Option("out", "o", "DIR", "", "folder for the log and the checkpoints (default: keep neither)"),
        Option("checkpoint-every", "n", "N", "0", "steps between checkpoints (0: only at the end)"),
        Option("batch-size", "b", "N", "4", "sequences per step (B)"),
        Option("seq-len", "t", "N", "64", "tokens per sequence (T)"),
        Option("max-steps", "x", "N", "40", "steps to train"),
        Option("learning-rate", "l", "X", "1e-4", "learning rate of AdamW"),
        Option("schedule", "k", "cosine|linear|constant|wsd", "constant", "shape of the learning rate over the run"),
        Option("warmup", "u", "N", "0", "steps over which the learning rate rises to its full value"),
        Option("final-lr-fraction", "q", "X", "1.0", "part of the learning rate that is left at the end"),
        Option("beta1", "", "X", "0.9", "decay of AdamW's first moment"),
        Option("beta2", "", "X", "0.999", "decay of AdamW's second moment"),
        Option("weight-decay", "c", "X", "0", "weight decay of AdamW, on every tensor"),
        Option("val-every", "v", "N", "10", "steps between validations (0: never)"),
        Option("val-batches", "m", "N", "5", "batches of a validation"),
        Option("sample-every", "s", "N", "20", "steps between samples (0: never)"),
        Option("gen-len", "g", "N", "64", "tokens of a sample"),
        Option("shuffle", "", "N", "1", "1: shuffle the training data as llm.c does; 0: take it in order"),
        Option("seed", "", "N", "1337", "seed of the initialisation and of the samples"),
        Option("threads", "", "N", "0", "threads to use (0: one for each core)"),
    ]


def main():
    try:
        train()
    except error:
        print(t"train_gpt2: {error}", file=stderr)
        exit(1)


def train() raises:
    var args = parse_arguments("train_gpt2", "Trains a GPT-2 on the CPU.", options())
    var B, T = args.int("batch-size", minimum=1), args.int("seq-len", minimum=1)
    var steps = args.int("max-steps")
    var threads = args.int("threads") if args.int("threads") > 0 else available_threads()

    var tokenizer = find_tokenizer(args)
    var config = model_config(args, tokenizer)
    if tokenizer and tokenizer.value().vocab_size != config.vocab_size:
        raise Error(
            t"the tokenizer has {tokenizer.value().vocab_size} tokens, the model {config.vocab_size}; give the tokenizer"
            t" that the model was trained with (--tokenizer), or another model (--init)"
        )
    var train_data = open_data(args, "train-data", config, shuffle=args.bool("shuffle"))
    var val_data = open_data(args, "val-data", config, shuffle=False)

    print(aligned(args.settings()))
    var model = GPT2[F32](config.copy(), threads, B, T)
    print(
        t"model       {config.num_layers} layers, {config.num_heads} heads, {config.channels} wide, vocabulary"
        t" {grouped(config.vocab_size)}, context {config.max_seq_len}: {grouped(config.num_parameters())} parameters"
    )
    print(
        t"memory      {megabytes(4 * parameter_bytes[F32](config))} for parameters, gradients and AdamW,"
        t" {megabytes(model.acts.num_bytes)} for activations"
    )
    print(t"data        {grouped(train_data.num_tokens)} training tokens, {grouped(val_data.num_tokens)} for validation")
    print(t"threads     {threads}\n", flush=True)
    if starts_at_random(args):
        model.initialize(args.int("seed"))
    else:
        read_parameters(checkpoint_path(args), model.params)

    var report = Report(args.string("out"))
    var sampler = Sampler(seed=args.int("seed"))
    var schedule = Schedule(
        shape=args.choice("schedule"),
        peak=args.float("learning-rate"),
        warmup=args.int("warmup"),
        steps=steps,
        final_fraction=args.float("final-lr-fraction", maximum=1),
    )
    var optimizer = AdamW(
        learning_rate=0,
        beta1=Float32(args.float("beta1", maximum=1)),
        beta2=Float32(args.float("beta2", maximum=1)),
        eps=1e-8,
        weight_decay=Float32(args.float("weight-decay")),
    )
    var arena = Arena(2 * aligned_bytes[I32](B * T))
    var inputs = arena.carve[I32](B * T)
    var targets = arena.carve[I32](B * T)
    for step in range(steps + 1):
        var last = step == steps
        if is_due(step, args.int("val-every"), last):
            report.validation(Validation(step, validate(model, val_data, inputs, targets, args.int("val-batches", minimum=1))))
        if tokenizer and step > 0 and is_due(step, args.int("sample-every"), last):
            print("--- sample")
            generate(model, sampler, tokenizer.value(), args.int("gen-len"))
            print("---", flush=True)
        if args.given("out") and step > 0 and (last or is_due(step, args.int("checkpoint-every"), False)):
            save(model, args.string("out"), step)
        if last:
            break

        var start = perf_counter_ns()
        train_data.next_batch(inputs, targets)
        model.forward(inputs, B, T)
        var loss = model.backward(targets)
        if not isfinite(loss):
            raise Error(t"step {step + 1}: the loss is {loss}: the model has diverged; lower --learning-rate")
        optimizer.learning_rate = Float32(schedule.learning_rate(step))
        var norm = model.update(optimizer, step + 1)
        report.step(
            Step(
                step=step + 1,
                steps=steps,
                loss=loss,
                norm=norm,
                learning_rate=Float64(optimizer.learning_rate),
                tokens=B * T,
                milliseconds=Float64(perf_counter_ns() - start) / 1e6,
                shard=train_data.current_shard,
                sample=train_data.current_sample,
            )
        )
    _ = arena^


def is_due(step: Int, every: Int, last: Bool) -> Bool:
    """Tells whether something happens now that happens every so many steps and after the last; never if every is 0."""
    return every > 0 and (step % every == 0 or last)


def validate(mut model: GPT2[F32], mut data: DataLoader, inputs: Tensor[I32], targets: Tensor[I32], batches: Int) raises -> Float32:
    """Returns the mean loss over the first batches of the validation data."""
    data.reset()
    var sum = Float64(0)
    for _ in range(batches):
        data.next_batch(inputs, targets)
        model.forward(inputs, data.B, data.T)
        sum += model.loss(targets).cast[DType.float64]()
    return Float32(sum / Float64(batches))


def save(model: GPT2[F32], folder: String, step: Int) raises:
    """Writes DIR/model_STEP.bin."""
    var path = String(t"{folder}/model_{String(step).ascii_rjust(8, '0')}.bin")
    write_checkpoint(path, model.config, model.params)
    print(t"saved {path}", flush=True)


# ----- what the flags say


def starts_at_random(args: Arguments) raises -> Bool:
    """Tells whether the model starts from random parameters: a depth name, or sizes and no --init."""
    var sizes = args.given("n-layer") or args.given("n-head") or args.given("n-embd")
    return (sizes and not args.given("init")) or is_depth(args.string("init"))


def is_depth(name: String) -> Bool:
    """Tells whether a name is one of d6, d12 ..."""
    return name.startswith("d") and name.byte_length() <= 3 and not exists(name)


def checkpoint_path(args: Arguments) raises -> String:
    """Returns the checkpoint that --init names; the published models have llm.c's file names."""
    var name = args.string("init")
    for known in [("gpt2", "124M"), ("gpt2-medium", "355M"), ("gpt2-large", "774M"), ("gpt2-xl", "1558M")]:
        var path = String(t"gpt2_{known[1]}.bin")
        if (name == known[0] or name == path) and not exists(path):
            raise Error(
                t"{path} is not here; `python -m llm_mojo weights {known[0]}` downloads GPT-2's weights and makes it, and"
                t" `--init d12` starts a model of GPT-2's size at random"
            )
        if name == known[0]:
            return path
    return name


def model_config(args: Arguments, tokenizer: Optional[Tokenizer]) raises -> GPT2Config:
    """Returns the sizes of the model: the checkpoint's, or those that the flags give."""
    if not starts_at_random(args):
        return read_config(checkpoint_path(args))
    var config = named_config(args.string("init") if args.given("init") else String("d12"))
    var vocab_size = args.int("vocab-size")
    if vocab_size == 0:
        vocab_size = tokenizer.value().vocab_size if tokenizer else config.vocab_size
    var block_size = args.int("block-size")
    return GPT2Config(
        max_seq_len=block_size if block_size > 0 else args.int("seq-len"),
        vocab_size=vocab_size,
        num_layers=args.int("n-layer") if args.given("n-layer") else config.num_layers,
        num_heads=args.int("n-head") if args.given("n-head") else config.num_heads,
        channels=args.int("n-embd") if args.given("n-embd") else config.channels,
    )


def find_tokenizer(args: Arguments) raises -> Optional[Tokenizer]:
    """Opens the tokenizer file: the one named, tokenizer.bin beside the data, or gpt2_tokenizer.bin here."""
    if args.given("tokenizer"):
        return Tokenizer(args.string("tokenizer"))
    for shard in glob_files(args.string("train-data")):
        var beside = dirname(shard) + "/tokenizer.bin"
        if exists(beside):
            return Tokenizer(beside)
    if exists("gpt2_tokenizer.bin"):
        return Tokenizer("gpt2_tokenizer.bin")
    return None


def open_data(args: Arguments, name: String, config: GPT2Config, *, shuffle: Bool) raises -> DataLoader:
    """Opens the shards that a flag names."""
    if not args.given(name) and not exists(args.string(name)):
        raise Error(t"{args.string(name)} is not here; `python prepro_tinyshakespeare.py` makes it")
    return DataLoader(
        args.string(name), args.int("batch-size"), args.int("seq-len"), vocab_size=config.vocab_size, shuffle=shuffle
    )


def megabytes(bytes: Int) -> String:
    """Writes a number of bytes in MB."""
    return grouped(bytes // 1_000_000) + " MB"
