"""Reads damaged files, one after the other in one process. Run by tests/test_damaged.py, built with the address sanitizer.

    FOLDER STEP V B T FIRST COUNT

FOLDER has good files: model.bin, state.bin, extra.json, tokenizer.bin, tokens.bin, hellaswag.bin, run.toml, log.jsonl,
and train_*.bin, the shards that the state is of.
Case i damages one of them, which and how following from i alone, writes it to FOLDER/damaged and reads that; when the
program crashes, the file is still there. Prints for each kind how many were refused and how many could be read: a
changed weight is a weight.
"""

from std.sys import argv

from llm.base.files import read_text
from llm.base.memory import Arena, Tensor, aligned_bytes
from llm.base.random import Mt19937, draw_at, scramble
from llm.cli.arguments import Arguments
from llm.cli.logs import lines_to_keep
from llm.cli.options import options
from llm.cli.settings import read_settings
from llm.data.loader import DataLoader
from llm.eval.choices import Choices
from llm.formats.training_state import SHUFFLED, DataPosition, read_state
from llm.model.checkpoints import read_config, read_parameters
from llm.model.tensors import ParameterTensors
from llm.text.tokenizer import Tokenizer
from llm.train.run_state import RunState, read_sidecar

comptime F32 = DType.float32
comptime I32 = DType.int32
comptime _HEADER = 1024
comptime _READS = 4
"""Batches read from damaged shards, and after damaged states."""


struct Dice(Movable):
    """Draws that follow from a number."""

    var key: UInt64
    var draws: UInt64

    def __init__(out self, seed: Int):
        self.key = scramble(UInt64(seed) + 1)
        self.draws = 0

    def below(mut self, n: Int) -> Int:
        self.draws += 1
        return Int(draw_at(self.key, self.draws) % UInt64(max(n, 1)))

    def number(mut self) -> Int:
        """Draws one that programs stumble over."""
        var numbers: List[Int] = [
            -1,
            0,
            1,
            2,
            3,
            255,
            256,
            65535,
            65536,
            1 << 24,
            Int(Int32.MAX),
            Int(Int32.MIN),
            1 << 40,
        ]
        numbers += [Int.MAX, Int.MIN, self.below(1 << 32), self.below(1000)]
        return numbers[self.below(len(numbers))]


def main() raises:
    var names: List[String] = ["model.bin", "state.bin", "extra.json", "tokenizer.bin", "tokens.bin", "hellaswag.bin"]
    names += ["run.toml", "log.jsonl"]
    var folder = String(argv()[1])
    var path = folder + "/damaged"
    var good = List[List[UInt8]]()
    for name in names:
        good.append(content(folder + "/" + name))
    var readers = Readers(folder)
    var refused = List[Int](length=len(names), fill=0)
    var accepted = List[Int](length=len(names), fill=0)
    for i in range(argument(6), argument(6) + argument(7)):
        var kind = i % len(names)
        var dice = Dice(i)
        var bytes = good[kind].copy()
        for _ in range(1 + dice.below(3)):
            damage(bytes, dice)
        with open(path, "w") as file:
            file.write_bytes(bytes)
        try:
            readers.read(kind, path)
            accepted[kind] += 1
        except error:
            if path not in String(error):
                raise Error(t"case {i}: {names[kind]} was refused without its name: {error}")
            refused[kind] += 1
    for kind in range(len(names)):
        print(names[kind], refused[kind], accepted[kind])


def damage(mut bytes: List[UInt8], mut dice: Dice):
    """Changes bits, numbers, the length, or moves a piece."""
    var size = len(bytes)
    var how = dice.below(8)
    if how == 0 and size > 0:
        bytes[dice.below(size)] ^= UInt8(1 << dice.below(8))
    elif how <= 3 and size >= 8:
        # A number of 4 or 8 bytes, more often than not in the header.
        var width = 4 if dice.below(2) == 0 else 8
        var fields = min(size, 40 * 4 if how < 3 else size) // 4
        var offset = min(dice.below(fields) * 4, size - width)
        var value = UInt64(dice.number())
        for b in range(width):
            bytes[offset + b] = UInt8((value >> UInt64(8 * b)) & 255)
    elif how == 4:
        bytes.shrink(dice.below(size + 1) if dice.below(2) == 0 else min(dice.below(2 * _HEADER), size))
    elif how == 5:
        for _ in range(1 + dice.below(64)):
            bytes.append(UInt8(dice.below(256)))
    elif how == 6 and size > 0:
        var start, length = dice.below(size), dice.below(64)
        for b in range(start, min(start + length, size)):
            bytes[b] = UInt8(dice.below(256))
    elif size > 0:
        # A piece from elsewhere: numbers and words that belong, in the wrong place.
        var source, target, length = dice.below(size), dice.below(size), dice.below(64)
        for b in range(min(length, size - max(source, target))):
            bytes[target + b] = bytes[source + b]


struct Readers(Movable):
    """What reads each kind of file, with what it reads into."""

    var folder: String
    var params: ParameterTensors[F32]
    var m: ParameterTensors[F32]
    var v: ParameterTensors[F32]
    var inputs: Tensor[I32]
    var targets: Tensor[I32]
    var arena: Arena

    def __init__(out self, folder: String) raises:
        self.folder = folder
        var config = read_config(folder + "/model.bin")
        self.params = ParameterTensors[F32](config)
        self.m = ParameterTensors[F32](config)
        self.v = ParameterTensors[F32](config)
        var size = argument(4) * argument(5)
        self.arena = Arena(2 * aligned_bytes[I32](size))
        self.inputs = self.arena.carve[I32](size)
        self.targets = self.arena.carve[I32](size)

    def read(mut self, kind: Int, path: String) raises:
        if kind == 0:
            read_parameters(path, self.params)
        elif kind == 1:
            var position = DataPosition()
            var states = self.m.tensors()
            states.extend(self.v.tensors())
            read_state(path, argument(2), states, self.params.tensors(), position)
            var loader = self.loader(self.folder + "/train_*.bin")
            try:
                loader.resume(position)
            except error:
                raise Error(t"{path}: {error}")
            self.read_batches(loader)
        elif kind == 2:
            var state = RunState(DataPosition(order=SHUFFLED), seed=1337)
            state.step = argument(2)
            read_sidecar(path, state)
            _ = state.json()
        elif kind == 3:
            var tokenizer = Tokenizer(path)
            for token in range(tokenizer.vocab_size):
                _ = tokenizer.decode(token)
            try:
                _ = tokenizer.encode(String("This is some text, ünd more.").as_bytes())
            except:
                pass
        elif kind == 4:
            var loader = self.loader(path)
            self.read_batches(loader)
        elif kind == 5:
            _ = Choices(path, vocab_size=argument(3), context=1024)
        elif kind == 6:
            var args = Arguments("damaged", "", options())
            read_settings(args, path)
        else:
            _ = lines_to_keep(read_text("damaged", path), 3, True)

    def loader(self, path: String) raises -> DataLoader:
        return DataLoader(path, argument(4), argument(5), vocab_size=argument(3), order=SHUFFLED)

    def read_batches(mut self, mut loader: DataLoader) raises:
        for _ in range(_READS):
            loader.next_batch(self.inputs, self.targets)


def content(path: String) raises -> List[UInt8]:
    with open(path, "r") as file:
        return file.read_bytes()


def argument(i: Int) raises -> Int:
    return Int(String(argv()[i]))
