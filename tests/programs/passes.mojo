"""Trains a few steps and prints a hash of all bits that come out. Run by tests/test_threads.py.

    CHECKPOINT TOKENS THREADS B T PIECES STEPS [GRADIENTS [fp32|bf16 [recompute]]]

Batches come from a token shard in order; each goes through the model in PIECES parts of B / PIECES sequences, whose
gradients are accumulated. GRADIENTS is a file for the gradients of the first batch, laid out as a checkpoint.
"""

from std.memory import bitcast
from std.sys import argv

from llm.base.memory import Arena, Tensor, aligned_bytes
from llm.cpu.adamw import AdamWSettings
from llm.data.loader import DataLoader
from llm.model.checkpoints import load_parameters, read_config, write_checkpoint
from llm.model.gpt2 import GPT2
from llm.model.tensors import NUM_TENSORS, ParameterTensors
from llm.optim.adamw import AdamW

comptime F32 = DType.float32
comptime I32 = DType.int32


def main() raises:
    if len(argv()) > 9 and argv()[9] == "bf16":
        run[DType.bfloat16]()
    else:
        run[F32]()


def run[dtype: DType]() raises:
    var path = String(argv()[1])
    var config = read_config(path)
    var V = config.vocab_size
    var B, T, pieces = number(4), number(5), number(6)
    var model = GPT2[dtype](config.copy(), number(3), B // pieces, T, recompute=len(argv()) > 10)
    load_parameters(path, model)
    var settings = AdamWSettings(learning_rate=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.1)
    var optimizer = AdamW(config, settings)
    var data = DataLoader(String(argv()[2]), B, T, vocab_size=V)
    var rows = B // pieces * T
    var arena = Arena(2 * aligned_bytes[I32](B * T) + aligned_bytes[F32](rows * V))
    var inputs = arena.carve[I32](B * T)
    var targets = arena.carve[I32](B * T)
    var logits = arena.carve[F32](rows * V)
    for step in range(1, number(7) + 1):
        data.next_batch(inputs, targets)
        for piece in range(pieces):
            model.forward(inputs.slice(piece * rows, rows), B // pieces, T)
            model.logits(0, rows, logits)
            var loss = model.backward(
                targets.slice(piece * rows, rows), accumulate=piece > 0, weight=1 / Float32(pieces)
            )
            print(t"step {step} piece {piece} logits {hash(logits)} loss {bitcast[DType.uint32](loss)} {loss}")
        for i in range(NUM_TENSORS):
            print(t"step {step} d{model.params.specs[i].name} {hash(model.grads[i])}")
        if step == 1 and len(argv()) > 8:
            write_checkpoint(String(argv()[8]), config, model.grads)
        optimizer.prepare(step=step, learning_rate=settings.learning_rate)
        var norm = model.update(optimizer)
        print(t"step {step} norm {bitcast[DType.uint32](norm)}")
        for i in range(NUM_TENSORS):
            print(
                t"step"
                t" {step} {model.params.specs[i].name} {hash(model.params[i])} {hash(optimizer.m[i])} {hash(optimizer.v[i])}"
            )
    _ = arena^


def number(i: Int) raises -> Int:
    return Int(String(argv()[i]))


def hash(tensor: Tensor[F32]) -> UInt64:
    """Hashes the bits of all elements and their order (FNV-1a, a word at a time)."""
    var sum = UInt64(0xCBF29CE484222325)
    for i in range(tensor.size):
        sum = (sum ^ bitcast[DType.uint32](tensor[i]).cast[DType.uint64]()) * 0x100000001B3
    return sum
