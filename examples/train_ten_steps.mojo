"""Makes a small GPT-2, trains it ten steps on an array of tokens and lets it go on from three of them; then a second one.
What makes no sense is an error that can be caught.

    mojo run -I . examples/train_ten_steps.mojo
"""

from llm.base.memory import Arena, Tensor
from llm.cpu.adamw import AdamWSettings
from llm.infer.generator import Generator
from llm.infer.sampler import Sampler
from llm.model.config import GPT2Config
from llm.model.decoder import Decoder
from llm.model.gpt2 import GPT2
from llm.optim.adamw import AdamW

comptime B = 8
comptime T = 12
comptime V = 10


def train(threads: Int, inputs: Tensor[DType.int32], targets: Tensor[DType.int32]) raises:
    """Teaches a model to count, from any digit on, and prints its losses and what it then writes."""
    var model = GPT2(GPT2Config(max_seq_len=T, vocab_size=V, num_layers=2, num_heads=2, channels=32), threads, B, T)
    model.initialize(seed=1)
    var optimizer = AdamW(model.config, AdamWSettings(beta2=0.95))
    for step in range(1, 11):
        model.forward(inputs, B, T)
        print("step", step, "loss", model.backward(targets))
        optimizer.prepare(step=step, learning_rate=0.01)
        _ = model.update(optimizer)

    var decoder = Decoder(model.config, model.params, threads, texts=1, context=T)
    var generator = Generator(decoder^, [Sampler(temperature=0)])
    generator.begin([2, 3, 4])
    var text = String("2 3 4")
    for _ in range(8):
        text += String(t" {generator.next()[0]}")
    print(text)
    # The decoder has views of the model, which would end with its last mention.
    _ = model^


def misuse[Call: def() raises -> None](call: Call):
    """Makes a call that makes no sense."""
    try:
        call()
        print("accepted")
    except error:
        print("refused:", error)


def main() raises:
    var arena = Arena(4096)
    var inputs = arena.carve[DType.int32](B * T)
    var targets = arena.carve[DType.int32](B * T)
    for i in range(B * T):
        inputs[i] = Int32((i // T + i % T) % V)
        targets[i] = (inputs[i] + 1) % V
    train(1, inputs, targets)
    train(2, inputs, targets)

    var model = GPT2(GPT2Config(max_seq_len=T, vocab_size=V, num_layers=1, num_heads=1, channels=8), 1, B, T)

    def backward_first() raises {mut model, imm}:
        _ = model.backward(targets)

    def too_few_tokens() raises {mut model, imm}:
        model.forward(inputs.slice(0, T), B, T)

    def logits_after_backward() raises {mut model, imm}:
        model.forward(inputs, B, T)
        _ = model.backward(targets)
        _ = model.losses(targets)

    def unknown_token() raises {mut model, imm}:
        inputs[5] = V
        model.forward(inputs, B, T)

    misuse(backward_first)
    misuse(too_few_tokens)
    misuse(logits_after_backward)
    misuse(unknown_token)
    _ = arena^
