"""What llm/cpu/dropout.mojo makes of ones. Run by tests/test_dropout.py.

    masks RATE COUNT OUT KEY...    OUT holds, as float32, COUNT elements for each key, a 64-bit integer with a sign
"""

from std.math import nan
from std.sys import argv

from llm.base.memory import Arena
from llm.base.written_files import AtomicFile
from llm.cpu.dropout import Dropout, apply_dropout
from llm.cpu.threads.crew import Team

comptime F32 = DType.float32


def main() raises:
    var rate = Float32(Float64(text(1)))
    var count = Int(text(2))
    var arena = Arena(2 * 64 + 8 * count)
    var ones = arena.carve[F32](count)
    ones.fill(1)
    var output = arena.carve[F32](count)
    var file = AtomicFile("masks", text(3))
    for i in range(4, len(argv())):
        output.fill(nan[F32]())
        apply_dropout(Team(3), output, ones, Dropout(rate, UInt64(Int(text(i)))))
        file.write(output)
    file.commit()
    _ = arena^


def text(i: Int) -> String:
    return String(argv()[i])
