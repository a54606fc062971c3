"""Calls of a model in an order or with sizes that make no sense are refused; parameters are written in one way."""

from std.testing import TestSuite, assert_almost_equal, assert_equal, assert_raises, assert_true

from llm.base.memory import Arena, Tensor
from llm.cpu.adamw import AdamWSettings
from llm.model.config import GPT2Config
from llm.model.gpt2 import GPT2
from llm.model.tensors import WTE, ParameterTensors
from llm.optim.adamw import AdamW

comptime F32 = DType.float32
comptime I32 = DType.int32
comptime B = 2
comptime T = 5
comptime V = 11


struct Batch(Movable):
    """Tokens, their targets, and room for logits."""

    var inputs: Tensor[I32]
    var targets: Tensor[I32]
    var logits: Tensor[F32]
    var arena: Arena

    def __init__(out self) raises:
        self.arena = Arena(4096)
        self.inputs = self.arena.carve[I32](B * T)
        self.targets = self.arena.carve[I32](B * T)
        self.logits = self.arena.carve[F32](B * T * V)
        for i in range(B * T):
            self.inputs[i] = Int32((3 * i) % V)
            self.targets[i] = Int32((3 * i + 3) % V)

    @no_inline
    def __deinit__(deinit self):
        pass


def made[dtype: DType = F32]() raises -> GPT2[dtype]:
    var config = GPT2Config(max_seq_len=T, vocab_size=V, num_layers=2, num_heads=2, channels=8)
    var model = GPT2[dtype](config^, 2, B, T)
    model.initialize(seed=1)
    return model^


def test_before_forward() raises:
    var batch = Batch()
    var model = made()
    with assert_raises(contains="backward: expected a forward pass just before, found nothing"):
        _ = model.backward(batch.targets)
    with assert_raises(contains="loss: expected a forward pass"):
        _ = model.loss(batch.targets)
    with assert_raises(contains="losses: expected a forward pass"):
        _ = model.losses(batch.targets)
    with assert_raises(contains="logits: expected a forward pass"):
        model.logits(0, B * T, batch.logits)
    with assert_raises(contains="hidden_state: expected a forward pass"):
        _ = model.hidden_state(0)
    with assert_raises(contains="attention: expected a forward pass"):
        model.attention(0, 0, batch.logits)
    with assert_raises(contains="update: expected gradients"):
        _ = model.update(AdamW(model.config, AdamWSettings()))
    with assert_raises(contains="gradient_norm: expected gradients"):
        _ = model.gradient_norm()
    _ = batch^


def test_after_backward() raises:
    var batch = Batch()
    var model = made()
    model.forward(batch.inputs, B, T)
    with assert_raises(contains="backward: expected gradients of these parameters, found none"):
        _ = model.backward(batch.targets, accumulate=True)
    _ = model.backward(batch.targets)
    with assert_raises(
        contains="logits: expected a forward pass just before, found `backward`, which reuses its memory"
    ):
        model.logits(0, B * T, batch.logits)
    with assert_raises(contains="losses: expected a forward pass just before, found `backward`"):
        _ = model.losses(batch.targets)
    with assert_raises(contains="loss: expected a forward pass just before, found `backward`"):
        _ = model.loss(batch.targets)
    with assert_raises(contains="backward: expected a forward pass just before, found `backward`"):
        _ = model.backward(batch.targets)
    var optimizer = AdamW(model.config, AdamWSettings())
    optimizer.prepare(step=1, learning_rate=1e-3)
    assert_almost_equal(model.gradient_norm(), model.update(optimizer), rtol=1e-6)
    with assert_raises(contains="update: expected gradients of these parameters, found none"):
        _ = model.update(optimizer)
    _ = batch^


def test_sizes_and_vocabulary() raises:
    var batch = Batch()
    var model = made()
    with assert_raises(contains="forward: expected 10 tokens (B*T), found 9"):
        model.forward(batch.inputs.slice(0, B * T - 1), B, T)
    with assert_raises(contains="forward: B=3, T=5 but the model was planned for 10 positions"):
        model.forward(batch.inputs, B + 1, T)
    batch.inputs[4] = V
    with assert_raises(contains="forward: token 11 at position 4 of the batch is not in this model's vocabulary of 11"):
        model.forward(batch.inputs, B, T)
    batch.inputs[4] = -1
    with assert_raises(contains="forward: token -1 at position 4"):
        model.forward(batch.inputs, B, T)
    batch.inputs[4] = 0
    model.forward(batch.inputs, B, T)
    with assert_raises(contains="backward: expected 10 tokens (B*T), found 7"):
        _ = model.backward(batch.targets.slice(0, 7))
    with assert_raises(contains="loss: expected 10 tokens (B*T), found 7"):
        _ = model.loss(batch.targets.slice(0, 7))
    batch.targets[9] = V
    with assert_raises(contains="backward: token 11 at position 9"):
        _ = model.backward(batch.targets)
    with assert_raises(contains="expected room for 10 rows of 11 logits, found 109 scalars"):
        model.logits(0, B * T, batch.logits.slice(0, B * T * V - 1))
    with assert_raises(contains="logits: rows 6 .. 10 of 10"):
        model.logits(6, 5, batch.logits)
    with assert_raises(contains="hidden_state: expected 0 to 2, got 3"):
        _ = model.hidden_state(3)
    with assert_raises(contains="expected a sequence below 2 and a block below 2, got 2 and 0"):
        model.attention(2, 0, batch.logits)
    with assert_raises(contains="expected room for 2 heads of 5 x 5 probabilities, found 110 scalars"):
        model.attention(0, 0, batch.logits)
    # A refused call has changed nothing.
    batch.targets[9] = 0
    _ = model.backward(batch.targets)
    with assert_raises(contains="T=6 but this model takes T from 1 to 5"):
        _ = GPT2[F32](model.config.copy(), 1, 1, T + 1)
    _ = batch^


def check_writing[dtype: DType]() raises:
    """New parameters count in the next pass, the rounded copies of a bfloat16 model among them."""
    var batch = Batch()
    var model = made[dtype]()
    model.forward(batch.inputs, B, T)
    var before = model.loss(batch.targets)

    def write(params: ParameterTensors[F32]) raises {}:
        for i in range(params[WTE].size):
            params[WTE][i] *= 3

    model.write_parameters(write)
    with assert_raises(contains="loss: expected a forward pass just before, found nothing, or new parameters"):
        _ = model.loss(batch.targets)
    model.forward(batch.inputs, B, T)
    var after = model.loss(batch.targets)
    assert_true(abs(after - before) > 1e-3)
    var other = made[dtype]()
    for i in range(other.params[WTE].size):
        other.params[WTE][i] *= 3
    other.forward(batch.inputs, B, T)
    assert_equal(after, other.loss(batch.targets))
    _ = batch^


def test_writing_parameters() raises:
    check_writing[F32]()
    check_writing[DType.bfloat16]()


def test_two_models_in_one_process() raises:
    var batch = Batch()
    var first = made()
    var second = made()
    first.forward(batch.inputs, B, T)
    second.forward(batch.inputs, B, T)
    assert_equal(first.backward(batch.targets), second.backward(batch.targets))
    _ = batch^


def main() raises:
    TestSuite.discover_tests[__functions_in_module()]().run()
