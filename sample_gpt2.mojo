"""Writes text with a GPT-2: continues a prompt, or talks on a terminal. `--help` lists the flags."""

from std.sys import exit

from llm.base.files import read_text
from llm.base.formatting import grouped
from llm.base.random import mixed_seed
from llm.cli.arguments import Arguments, Option, parse_arguments
from llm.cli.line_editor import LineEditor
from llm.cli.model_files import model_checkpoint, model_tokenizer
from llm.cli.plan import check_memory_to_write
from llm.cli.screen import Screen, complain
from llm.cli.setup import check_vocabulary
from llm.cli.signals import SIGINT, forget_signal, stop_signal, watch_for_interrupts, watch_for_signals
from llm.cli.standard_input import is_terminal, read_all
from llm.cli.start import expect_addresses
from llm.cli.text_writer import write_texts
from llm.cpu.threads.cores import available_threads
from llm.infer.generator import Generator
from llm.infer.sampler import Sampler
from llm.model.checkpoints import read_config, read_parameters
from llm.model.decoder import Decoder
from llm.model.tensors import ParameterTensors, num_parameters
from llm.text.tokenizer import TextStream, Tokenizer, first_token


def options() -> List[Option]:
    return [
        Option("init", "e", "MODEL", "gpt2_124M.bin", "checkpoint FILE.bin, folder of a run, or gpt2..gpt2-xl"),
        Option("tokenizer", "", "FILE", "", "its tokenizer (default: the run's, or the one beside the checkpoint)"),
        Option("prompt", "p", "TEXT", "", "what to continue (default: standard input, or a session on a terminal)"),
        Option("prompt-file", "", "FILE", "", "what to continue, from a file"),
        Option("num-tokens", "n", "N", "200", "tokens to write at most"),
        Option(
            "num-samples", "s", "N", "1", "texts to write; text i has the seed of the first of --seed + i", minimum=1
        ),
        Option("temperature", "", "X", "0.8", "how daring: 1 as the model thinks, 0 always the most likely token"),
        Option("top-k", "", "N", "0", "only the N most likely tokens (0: all)"),
        Option(
            "top-p",
            "",
            "X",
            "1",
            "only the most likely tokens whose probability adds up to X (0: the first)",
            maximum=1,
        ),
        Option("seed", "", "N", "1337", "seed of the draws"),
        Option("stop", "", "TEXT", "", "end a text where this would come"),
        Option("dtype", "", "fp32|bf16", "fp32", "weights in memory; bf16 is faster, and nearly as exact"),
        Option("threads", "", "N", "0", "threads to use (0: one for each core)"),
    ]


def main():
    expect_addresses()
    try:
        var args = parse_arguments("sample_gpt2", "Writes text with a GPT-2 on the CPU.", options())
        if args.choice("dtype") == "bf16":
            exit(run[DType.bfloat16](args))
        exit(run[DType.float32](args))
    except error:
        complain(String(t"sample_gpt2: {error}"))
        exit(1)


def run[dtype: DType](args: Arguments) raises -> Int:
    """Loads the model, writes, and returns the exit status: 0, or 128 and the signal that stopped the text."""
    var samplers = make_samplers(args)
    var checkpoint = model_checkpoint(args)
    var config = read_config(checkpoint)
    var tokenizer = model_tokenizer(args, checkpoint)
    check_vocabulary(tokenizer, config)
    # A token has at least one byte.
    var prompt_length = args.string("prompt").byte_length() if args.given("prompt") else 0
    var threads = args.int("threads") if args.int("threads") > 0 else available_threads()
    check_memory_to_write[dtype](config, threads, len(samplers), prompt=prompt_length, count=args.int("num-tokens"))
    var params = ParameterTensors[dtype](config)
    read_parameters(checkpoint, params)
    var decoder = Decoder[dtype](config, params, threads, texts=len(samplers), context=config.max_seq_len)
    var generator = Generator(decoder^, samplers^)
    var screen = Screen()
    var status: Int
    if not args.given("prompt") and not args.given("prompt-file") and is_terminal():
        watch_for_interrupts()
        complain(String(t"{checkpoint}: {grouped(num_parameters(config))} parameters. Type a text to go on from,"))
        complain("or nothing to go on; Ctrl-C stops the text, Ctrl-D ends.")
        status = session(generator, tokenizer, screen, args)
    else:
        watch_for_signals()
        var prompt = read_prompt(args)
        begin(generator, tokenizer, prompt)
        var shown = TextStream()
        var text = shown.push(Span(prompt))
        write(generator, tokenizer, screen, args, text + shown.finish())
        status = 128 + stop_signal() if stop_signal() != 0 else 0
    _ = params^
    return status


def make_samplers(args: Arguments) raises -> List[Sampler]:
    """Makes a sampler for each text; the second of one seed draws as the first of the next."""
    var samplers = List[Sampler]()
    for i in range(args.int("num-samples")):
        samplers.append(
            Sampler(
                seed=mixed_seed(args.int("seed") + i),
                temperature=args.float("temperature"),
                top_k=args.int("top-k"),
                top_p=args.float("top-p"),
            )
        )
    return samplers^


def read_prompt(args: Arguments) raises -> List[UInt8]:
    """Returns the prompt that the flags or standard input give; of a file the newline at the end does not count."""
    if args.given("prompt"):
        return List(args.string("prompt").as_bytes())
    var bytes: List[UInt8]
    if args.given("prompt-file"):
        bytes = List(read_text("prompt", args.string("prompt-file")).as_bytes())
    else:
        bytes = read_all()
    if len(bytes) > 0 and bytes[len(bytes) - 1] == UInt8(ord("\n")):
        _ = bytes.pop()
    return bytes^


def session[
    dtype: DType
](mut generator: Generator[dtype], tokenizer: Tokenizer, mut screen: Screen, args: Arguments) raises -> Int:
    """Continues what is typed, line by line, until Ctrl-D. What the vocabulary has no token for is said.

    Returns the exit status: 0, or 128 and the signal that ended it, which Ctrl-C does not.
    """
    var editor = LineEditor()
    while True:
        var line = editor.read_line("> ")
        var signal = stop_signal()
        forget_signal()
        if signal != 0 and signal != SIGINT:
            return 128 + signal
        if not line:
            complain("")
            return 0
        var interrupted = signal != 0
        var is_empty = len(line.value()) == 0
        if interrupted and is_empty:
            complain("")
            continue
        if not is_empty or len(generator.active) == 0:
            try:
                begin(generator, tokenizer, line.value())
            except error:
                complain(String(error))
                continue
        write(generator, tokenizer, screen, args, "")
        if stop_signal() != 0 and stop_signal() != SIGINT:
            return 128 + stop_signal()
        forget_signal()


def begin[dtype: DType](mut generator: Generator[dtype], tokenizer: Tokenizer, prompt: List[UInt8]) raises:
    """Reads a prompt; an empty one is the token with which texts begin."""
    var tokens = tokenizer.encode(Span(prompt), allow_special=True)
    if len(tokens) == 0:
        tokens.append(Int32(first_token(tokenizer)))
    generator.begin(tokens)


def write[
    dtype: DType
](mut generator: Generator[dtype], tokenizer: Tokenizer, mut screen: Screen, args: Arguments, prompt: String) raises:
    write_texts(generator, tokenizer, screen, prompt=prompt, count=args.int("num-tokens"), stop=args.string("stop"))
