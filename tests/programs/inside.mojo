"""What a model has inside. Run by tests/test_inside.py.

    CHECKPOINT TOKENS DTYPE THREADS B T OUT    OUT holds, as float32, the residual stream (L+1,B,T,C), then for each sequence
                                               and block the attention of its heads (B,L,NH,T,T)

TOKENS is a file of B*T int32.
"""

from std.math import nan
from std.sys import argv

from llm.base.files import InputFile
from llm.base.memory import Arena, aligned_bytes
from llm.base.written_files import AtomicFile
from llm.model.checkpoints import load_parameters, read_config
from llm.model.gpt2 import GPT2

comptime F32 = DType.float32
comptime I32 = DType.int32


def main() raises:
    if String(argv()[3]) == "bf16":
        write_inside[DType.bfloat16]()
    else:
        write_inside[F32]()


def write_inside[dtype: DType]() raises:
    var path = String(argv()[1])
    var config = read_config(path)
    var B, T = number(5), number(6)
    var model = GPT2[dtype](config.copy(), number(4), B, T)
    load_parameters(path, model)
    var size = config.num_heads * T * T
    var arena = Arena(aligned_bytes[I32](B * T) + aligned_bytes[F32](size))
    var tokens = arena.carve[I32](B * T)
    InputFile("inside", String(argv()[2])).read(0, tokens)
    var maps = arena.carve[F32](size)
    model.forward(tokens, B, T)
    var file = AtomicFile("inside", String(argv()[7]))
    for l in range(config.num_layers + 1):
        file.write(model.hidden_state(l))
    for b in range(B):
        for l in range(config.num_layers):
            maps.fill(nan[F32]())
            model.attention(b, l, maps)
            file.write(maps)
    file.commit()
    _ = arena^


def number(i: Int) raises -> Int:
    return Int(String(argv()[i]))
