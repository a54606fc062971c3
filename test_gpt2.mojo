"""Proves the model against PyTorch: logits, loss, the 16 gradients, then ten AdamW steps on one batch.

The referee's answers come from `python -m llm_mojo reference`: a debug state in llm.c's format and a text file with the
ten losses. Prints a line for each comparison; the exit status is 1 if anything is off.
"""

from std.os.path import exists
from std.sys import exit

from llm.base.files import InputFile
from llm.base.memory import Arena, Tensor, aligned_bytes
from llm.cli.arguments import Option, parse_arguments
from llm.cli.screen import Screen, complain
from llm.cli.start import expect_addresses
from llm.cpu.adamw import AdamWSettings
from llm.cpu.threads.cores import available_threads
from llm.formats.debug_state import DebugState
from llm.model.checkpoints import load_parameters, read_config
from llm.model.gpt2 import GPT2
from llm.model.tensors import NUM_TENSORS, ParameterTensors, num_parameters
from llm.optim.adamw import AdamW

comptime F32 = DType.float32
comptime NUM_STEPS = 10


def options() -> List[Option]:
    return [
        Option("init", "e", "FILE", "gpt2_124M.bin", "the checkpoint"),
        Option("debug-state", "", "FILE", "gpt2_124M_debug_state.bin", "what PyTorch computed for it"),
        Option("losses", "", "FILE", "gpt2_124M_losses.txt", "ten losses of PyTorch's AdamW, one a line"),
        Option("tolerance", "", "X", "1e-4", "largest error, in parts of a tensor's largest magnitude"),
        Option("threads", "", "N", "0", "threads to use (0: one for each core)"),
    ]


struct Verdict:
    """Counts what is off, and says so line by line."""

    var tolerance: Float32
    var failures: Int
    var comparisons: Int
    var screen: Screen

    def __init__(out self, tolerance: Float32):
        self.tolerance = tolerance
        self.failures = 0
        self.comparisons = 0
        self.screen = Screen()

    def compare(mut self, name: String, ours: Tensor[F32], expected: Tensor[F32]):
        """Compares tensors by the largest difference, in parts of the expected tensor's largest magnitude."""
        var largest = Float32(0)
        var difference = Float32(0)
        var worst = 0
        for i in range(expected.size):
            largest = max(largest, abs(expected[i]))
            var d = abs(ours[i] - expected[i])
            # A comparison with NaN is false: written this way round, NaN counts as the worst difference.
            if not (d <= difference):
                difference = d
                worst = i
        var error = difference / largest if largest > 0 else difference
        self._judge(name, error, String(t"{ours[worst]} and {expected[worst]} at {worst}"))

    def compare_loss(mut self, name: String, ours: Float32, expected: Float32):
        """Compares two losses, relative to the expected one."""
        self._judge(name, abs(ours - expected) / abs(expected), String(t"{ours} and {expected}"))

    def _judge(mut self, name: String, error: Float32, worst: String):
        var good = error <= self.tolerance
        self.comparisons += 1
        if not good:
            self.failures += 1
        var verdict = "ok  " if good else "OFF "
        self.screen.line(String(t"{name.ascii_ljust(9)} {verdict} error {error}   ({worst})"))


def main():
    expect_addresses()
    try:
        exit(1 if test() > 0 else 0)
    except error:
        complain(String(t"test_gpt2: {error}"))
        exit(1)


def test() raises -> Int:
    """Makes all comparisons and returns how many are off."""
    var args = parse_arguments(
        "test_gpt2", "Compares logits, loss, gradients and ten AdamW steps with PyTorch's.", options()
    )
    var threads = args.int("threads") if args.int("threads") > 0 else available_threads()
    var path = args.string("init")
    var files: List[StaticString] = ["init", "debug-state", "losses"]
    for name in files:
        if not args.given(name) and not exists(args.string(name)):
            raise Error(
                t"{args.string(name)} is not here; `python -m llm_mojo weights gpt2` makes the checkpoint, then `python"
                t" -m llm_mojo reference` the rest (with `reference --init d12` alone the weights are random)"
            )
    var config = read_config(path)
    var grads = ParameterTensors[F32](config)
    var state = DebugState(args.string("debug-state"), config.vocab_size, grads.tensors())
    var expected_losses = read_losses(args.string("losses"))
    var verdict = Verdict(Float32(args.float("tolerance")))

    var B, T = state.B, state.T
    var model = GPT2[F32](config.copy(), threads, B, T)
    load_parameters(path, model)

    verdict.screen.line(
        String(
            t"{path}: {num_parameters(config)} parameters, B={B}, T={T}. Error, then ours and PyTorch's where it is"
            t" largest:"
        )
    )
    var arena = Arena(aligned_bytes[F32](B * T * config.vocab_size))
    var logits = arena.carve[F32](B * T * config.vocab_size)
    model.forward(state.x, B, T)
    model.logits(0, B * T, logits)
    verdict.compare("logits", logits, state.logits)
    var loss = model.backward(state.y)
    verdict.compare_loss("loss", loss, state.loss)
    for i in range(NUM_TENSORS):
        verdict.compare("d" + model.params.specs[i].name, model.grads[i], grads[i])

    var settings = AdamWSettings(learning_rate=1e-4, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.01)
    var optimizer = AdamW(config, settings, decay_all=True)
    for step in range(1, NUM_STEPS + 1):
        if step > 1:
            model.forward(state.x, B, T)
            loss = model.backward(state.y)
        verdict.compare_loss(String(t"step {step}"), loss, expected_losses[step - 1])
        optimizer.prepare(step=step, learning_rate=settings.learning_rate)
        _ = model.update(optimizer)
    _ = arena^

    if verdict.failures > 0:
        verdict.screen.line(
            String(
                t"FAILED: {verdict.failures} of {verdict.comparisons} comparisons are off by more than"
                t" {verdict.tolerance}"
            )
        )
    else:
        verdict.screen.line(String(t"passed: all {verdict.comparisons} comparisons within {verdict.tolerance}"))
    verdict.screen.check()
    return verdict.failures


def read_losses(path: String) raises -> List[Float32]:
    """Reads ten numbers, one a line."""
    var file = InputFile("test_gpt2", path)
    var losses = List[Float32]()
    with open(path, "r") as text:
        for line in text.read().splitlines():
            try:
                losses.append(Float32(Float64(line)))
            except:
                raise file.error(String(t"expected a number on each line, found {line}; make the file again"))
    if len(losses) != NUM_STEPS:
        raise file.error(String(t"expected {NUM_STEPS} losses, one a line, found {len(losses)}; make the file again"))
    return losses^
