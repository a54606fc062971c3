"""Compares a layer of `llm/cpu`, forward and backward, with goldens from the PyTorch reference in float64.

The programs beside this file each do so for one layer. Usage: PROGRAM FOLDER, where `llm_mojo.reference.layer_goldens` has
written the goldens. Run by tests/test_layers.py. Outputs start as NaN, so that what is not written shows; every layer runs
on 1, 2, 3 and 7 threads and must give the same bits each time.
"""

from std.math import nan
from std.sys import argv, exit

from llm.base.memory import Arena, Tensor
from llm.cpu.threads.crew import Team

comptime F32 = DType.float32
comptime TOLERANCE = Float32(2e-6)
"""In parts of a tensor's largest magnitude: a few roundings of float32 over sums of up to a hundred terms."""


struct Goldens:
    """One layer's files: sizes by name, tensors by name, and fresh NaN-filled tensors for what is computed."""

    var folder: String
    var layer: String
    var failures: Int
    var arena: Arena
    var computed: List[List[Float32]]
    """What one thread computed, check by check."""
    var checks: Int
    """Checks made so far by the team at work."""

    def __init__(out self, folder: String, layer: String) raises:
        self.folder = folder
        self.layer = layer
        self.failures = 0
        self.arena = Arena(1 << 28)
        self.computed = List[List[Float32]]()
        self.checks = 0

    def number(self, name: String) raises -> Float64:
        with open(self.folder + "/" + self.layer + ".txt", "r") as f:
            for line in f.read().splitlines():
                var words = line.split(" ")
                if words[0] == name:
                    return Float64(words[1])
        raise Error(t"{self.layer} has no {name}")

    def size(self, name: String) raises -> Int:
        return Int(self.number(name))

    def load[dtype: DType = F32](mut self, name: String) raises -> Tensor[dtype]:
        with open(self.folder + "/" + self.layer + "_" + name + ".bin", "r") as f:
            var bytes = f.read_bytes()
            var tensor = self.arena.carve[dtype](len(bytes) // 4)
            var target = Tensor[DType.uint8](Tensor[DType.uint8].Ptr(unsafe_from_address=Int(tensor.ptr)), len(bytes))
            for i in range(len(bytes)):
                target[i] = bytes[i]
            return tensor

    def fresh(mut self, size: Int) raises -> Tensor[F32]:
        var tensor = self.arena.carve[F32](size)
        tensor.fill(nan[F32]())
        return tensor

    def copy(mut self, source: Tensor[F32]) raises -> Tensor[F32]:
        var tensor = self.arena.carve[F32](source.size)
        for i in range(source.size):
            tensor[i] = source[i]
        return tensor

    def check(mut self, team: Team, name: String, ours: Tensor[F32]) raises:
        self.check(team, name, ours, self.load(name))

    def check(mut self, team: Team, name: String, ours: Tensor[F32], expected: Tensor[F32]) raises:
        """Compares with the golden, and with what a team of another size computed."""
        var key = self.layer + "_" + name
        var values = List[Float32](capacity=ours.size)
        var largest = Float32(0)
        var difference = Float32(0)
        for i in range(expected.size):
            values.append(ours[i])
            largest = max(largest, abs(expected[i]))
            if not (abs(ours[i] - expected[i]) <= difference):
                difference = abs(ours[i] - expected[i])
        var error = difference / largest if largest > 0 else difference
        if not (error <= TOLERANCE):
            self.failures += 1
            print(t"OFF: {key} on {team.size} threads: error {error}, allowed {TOLERANCE}")
        if team.size == 1:
            print(t"{key}: error {error}")
            self.computed.append(values^)
        elif values != self.computed[self.checks]:
            self.failures += 1
            print(t"OFF: {key} on {team.size} threads has other bits than on 1")
        self.checks += 1


def compare(layer: String, run: def(mut Goldens, Team) raises thin -> None) raises:
    """Runs a layer on teams of several sizes; ends the program with status 1 if a result is off."""
    var goldens = Goldens(String(argv()[1]), layer)
    for threads in [1, 2, 3, 7]:
        goldens.checks = 0
        run(goldens, Team(threads))
    if goldens.failures > 0:
        exit(1)


def halve(x: Tensor[F32]):
    for i in range(x.size):
        x[i] = x[i] / 2
