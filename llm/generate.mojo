"""Text from a model: one token after another, each drawn from the logits of the last position."""

from llm.gpt2 import GPT2
from llm.memory import Arena, Tensor, aligned_bytes
from llm.sampler import Sampler
from llm.tokenizer import TextStream, Tokenizer

comptime F32 = DType.float32


def generate[dtype: DType, //](mut model: GPT2[dtype], mut sampler: Sampler, tokenizer: Tokenizer, count: Int) raises:
    """Prints `count` tokens as they are drawn, starting from the token that begins a text.

    When the context is full its older half is dropped.

    Raises:
        If the model has diverged, or has another vocabulary than the tokenizer.
    """
    var V = model.config.vocab_size
    var context = model.acts.max_seq_len
    var arena = Arena(aligned_bytes[DType.int32](context) + aligned_bytes[F32](V))
    var tokens = arena.carve[DType.int32](context)
    var logits = arena.carve[F32](V)
    var stream = TextStream()
    tokens[0] = Int32(first_token(tokenizer))
    var used = 1
    for _ in range(count):
        model.forward(tokens, 1, used)
        model.logits(used - 1, 1, logits)
        var next = sampler.sample(logits)
        print(stream.push(tokenizer.decode(next)), end="", flush=True)
        if used == context:
            used = context // 2
            for i in range(used):
                tokens[i] = tokens[context - used + i]
        if used < context:
            tokens[used] = Int32(next)
            used += 1
    print(stream.finish(), flush=True)
    _ = arena^


def first_token(tokenizer: Tokenizer) raises -> Int:
    """Returns the token that a text begins with: end-of-text, or in a vocabulary without one the newline, else token 0.
    """
    if tokenizer.end_of_text >= 0:
        return tokenizer.end_of_text
    for token in range(tokenizer.vocab_size):
        var bytes = tokenizer.decode(token)
        if len(bytes) == 1 and bytes[0] == UInt8(ord("\n")):
            return token
    return 0
