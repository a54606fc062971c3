"""Evaluates a GPT-2: loss and perplexity on token shards, accuracy on HellaSwag. `--help` lists the flags."""

from std.os.path import exists, isfile
from std.sys import exit

from llm.base.files import InputFile, beside
from llm.base.formatting import grouped
from llm.base.json import json_number, json_text
from llm.base.memory import Tensor
from llm.base.written_files import AtomicFile
from llm.cli.arguments import Arguments, Option, parse_arguments
from llm.cli.model_files import model_checkpoint
from llm.cli.plan import check_memory_to_evaluate
from llm.cli.run_tokenizer import expect_own_tokenizer, own_tokenizer
from llm.cli.screen import Screen, complain
from llm.cli.setup import check_vocabulary, open_hellaswag
from llm.cli.signals import signal_name, stop_signal, watch_for_signals
from llm.cli.start import expect_addresses
from llm.cli.ticker import Ticker
from llm.cpu.threads.cores import available_threads
from llm.data.manifest import check_manifests
from llm.eval.choices import judge_all
from llm.eval.judgement import Accuracy, Judgement
from llm.eval.windows import SlidingWindow, evaluate_shards, token_lengths
from llm.formats.choices import NUM_ENDINGS
from llm.model.checkpoints import load_parameters, read_config
from llm.model.config import GPT2Config
from llm.model.gpt2 import GPT2
from llm.model.tensors import num_parameters
from llm.text.tokenizer import Tokenizer

comptime POSITIONS = 1024
"""Positions that a pass over shards has at least: fewer would not keep the processor busy."""


comptime RESULTS_BEGIN = '{"model": '
"""What a file of `--json` begins with."""


def options() -> List[Option]:
    return [
        Option("init", "e", "MODEL", "gpt2_124M.bin", "checkpoint FILE.bin, folder of a run, or gpt2..gpt2-xl"),
        Option("val-data", "j", "GLOB", "", "token shards: prints loss and perplexity"),
        Option("seq-len", "t", "N", "0", "tokens that a window over the shards shows (0: the model's context)"),
        Option("stride", "", "N", "", "tokens from one window to the next (default: as --seq-len)", minimum=1),
        Option(
            "tokenizer",
            "",
            "FILE",
            "",
            "of the shards, for bits per byte (default: tokenizer.bin beside them, or the run's)",
        ),
        Option("hellaswag", "h", "FILE", "", "llm.c's evaluation file (1: the prepared one): prints acc and acc_norm"),
        Option("limit", "", "N", "0", "examples of HellaSwag to evaluate, from the first on (0: all)"),
        Option("json", "", "FILE", "", "where to write the results too, example by example"),
        Option("dtype", "", "fp32|bf16", "fp32", "of the matrix products; bf16 is faster, and nearly as exact"),
        Option("threads", "", "N", "0", "threads to use (0: one for each core)"),
    ]


def main():
    expect_addresses()
    try:
        var args = parse_arguments("eval_gpt2", "Evaluates a GPT-2 on the CPU.", options())
        exit(evaluate[DType.bfloat16](args) if args.choice("dtype") == "bf16" else evaluate[DType.float32](args))
    except error:
        complain(String(t"eval_gpt2: {error}"))
        exit(1)


def evaluate[dtype: DType](args: Arguments) raises -> Int:
    """Evaluates and returns the exit status: 0, or 128 and the signal that stopped it."""
    if not args.given("val-data") and not args.given("hellaswag"):
        args.fail("expected --val-data or --hellaswag: there is nothing to evaluate")
    var path = model_checkpoint(args)
    var config = read_config(path)
    var windows = Optional[SlidingWindow](None)
    var questions = open_hellaswag(args, config, config.max_seq_len, own_tokenizer(path))
    var lengths = List[Int]()
    var T = 1
    var rows = 1
    if args.given("val-data"):
        windows = sliding_window(args, config)
        T = windows.value().T
        lengths = lengths_of_tokens(args, path, windows.value(), config)
        rows = max(T, POSITIONS)
    if questions:
        T = max(T, questions.value().file.longest)
        rows = max(rows, NUM_ENDINGS * questions.value().file.longest)
    # Opened now, so that it is not after hours that it turns out to be impossible.
    var output = Optional[AtomicFile](None)
    if args.given("json"):
        output = results_file(args.string("json"))
    var threads = args.int("threads") if args.int("threads") > 0 else available_threads()
    var B = (rows + T - 1) // T
    check_memory_to_evaluate[dtype](config, B, T, threads)
    var model = GPT2[dtype](config.copy(), threads, B, T)
    load_parameters(path, model)
    watch_for_signals()
    var screen = Screen()
    screen.line(String(t"{path}: {grouped(num_parameters(config))} parameters, context {grouped(config.max_seq_len)}"))

    var results = String(t'{RESULTS_BEGIN}{json_text(path)}')
    if windows:
        ref window = windows.value()
        var data = args.string("val-data")
        screen.line(
            String(
                t"{data}: {grouped(window.num_targets)} targets in {grouped(window.num_windows)} windows of"
                t" {grouped(window.T)}, stride {grouped(window.stride)}"
            )
        )
        var estimate = evaluate_shards(model, window, lengths, Ticker("windows", screen))
        if estimate.windows > 0:
            screen.line(estimate.line())
        results += String(
            t', "data": {{"path": {json_text(data)}, "seq_len": {window.T}, "stride": {window.stride},'
            t" {estimate.json_members()}}}"
        )
    if questions and stop_signal() == 0:
        var judgements = judge_all(questions.value(), model, args.int("limit"), Ticker("hellaswag", screen))
        if len(judgements) > 0:
            screen.line(Accuracy(judgements).lines())
        results += String(t', "hellaswag": {hellaswag_json(questions.value().file.path, judgements)}')
    screen.check()
    if stop_signal() != 0:
        screen.line(
            String(t"stopped by {signal_name(stop_signal())}; the figures are those of what was done until then")
        )
        return 128 + stop_signal()
    if output:
        output.value().write(results + "}\n")
        output.value().commit()
    return 0


def results_file(path: String) raises -> AtomicFile:
    """Starts the file of `--json`, in place of results of ours at most.

    Raises:
        If something else is there, or it cannot be made.
    """
    if isfile(path):
        var file = InputFile("json", path)
        var begin = String(RESULTS_BEGIN)
        var found = List[UInt8](length=min(file.size, begin.byte_length()), fill=0)
        file.read(
            0, Tensor[DType.uint8](Tensor[DType.uint8].Ptr(unsafe_from_address=Int(found.unsafe_ptr())), len(found))
        )
        if len(found) > 0 and StringSlice(unsafe_from_utf8=Span(found)) != begin:
            raise file.error("there is a file that holds no results of eval_gpt2; choose another name, or remove it")
    return AtomicFile("json", path)


def sliding_window(args: Arguments, config: GPT2Config) raises -> SlidingWindow:
    """Opens the shards with the window that the flags give; one that the model cannot have ends the program."""
    var context = config.max_seq_len
    var T = args.int("seq-len", maximum=context) if args.int("seq-len") > 0 else context
    var stride = args.int("stride", maximum=T) if args.given("stride") else T
    return SlidingWindow(args.string("val-data"), T, stride)


def lengths_of_tokens(
    args: Arguments, checkpoint: String, window: SlidingWindow, config: GPT2Config
) raises -> List[Int]:
    """Returns the bytes of each token, or nothing if there is no tokenizer of the shards.

    Raises:
        If shards, tokenizer and model do not belong together.
    """
    var path = Optional(
        args.string("tokenizer") if args.given("tokenizer") else beside(window.paths[0], "tokenizer.bin")
    )
    if not args.given("tokenizer") and not exists(path.value()):
        path = own_tokenizer(checkpoint)
    check_manifests(args.string("val-data"), path, config.vocab_size)
    if not path:
        return List[Int]()
    var tokenizer = Tokenizer(path.value())
    check_vocabulary(tokenizer, config)
    expect_own_tokenizer(path.value(), checkpoint)
    return token_lengths(tokenizer)


def hellaswag_json(path: String, judgements: List[Judgement]) -> String:
    """Writes what came out for `--json`, example by example."""
    var accuracy = Accuracy(judgements)
    var text = String(
        t'{{"path": {json_text(path)}, "examples": {accuracy.examples}, "acc": {json_number(accuracy.acc())},'
        t' "acc_norm": {json_number(accuracy.acc_norm())}, "judgements": ['
    )
    for i in range(len(judgements)):
        text += (",\n  " if i > 0 else "\n  ") + judgements[i].json()
    return text + "\n]}"
