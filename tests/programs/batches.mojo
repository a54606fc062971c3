"""Serves batches on demand. Run by tests/test_changing_data.py.

    PATTERN B T ORDER

Each line of the input is a command: `batch` prints the tokens of the next one, `reset`, `mark` and `rewind` do what the
loader's methods do. What fails is printed, and the next command is awaited.
"""

from std.sys import argv

from llm.base.memory import Arena, aligned_bytes
from llm.data.loader import DataLoader

comptime I32 = DType.int32


def main() raises:
    var B, T = Int(String(argv()[2])), Int(String(argv()[3]))
    var data = DataLoader(String(argv()[1]), B, T, vocab_size=1 << 16, order=Int(String(argv()[4])))
    var arena = Arena(2 * aligned_bytes[I32](B * T))
    var inputs = arena.carve[I32](B * T)
    var targets = arena.carve[I32](B * T)
    print("ready", flush=True)
    while True:
        var command: String
        try:
            command = input()
        except:
            break
        try:
            if command == "batch":
                data.next_batch(inputs, targets)
                var line = String()
                for i in range(B * T):
                    line += String(t"{inputs[i]} {targets[i]} ")
                print(line, flush=True)
                continue
            elif command == "reset":
                data.reset()
            elif command == "mark":
                data.mark()
            else:
                data.rewind()
            print(command, flush=True)
        except error:
            print(t"failed: {error}", flush=True)
    _ = arena^
