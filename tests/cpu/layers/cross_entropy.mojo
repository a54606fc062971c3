"""The loss against the goldens."""

from std.math import isnan, nan

from goldens import Goldens, compare

from llm.cpu.cross_entropy import cross_entropy_forward, cross_entropy_forward_backward
from llm.cpu.threads.crew import Team

comptime F32 = DType.float32


def check_cross_entropy(mut g: Goldens, team: Team) raises:
    var V = g.size("V")
    var rows = g.size("B") * g.size("T")
    var logits = g.load("logits")
    var targets = g.load[DType.int32]("targets")
    # Rows lie further apart than V, as they do in the model; what is between must stay.
    var stride = V + 5
    var padded = g.fresh(rows * stride)
    for row in range(rows):
        for v in range(V):
            padded[row * stride + v] = logits[row * V + v]
    var losses = g.fresh(rows)
    cross_entropy_forward(team, losses, padded, targets, rows, V, stride)
    g.check(team, "losses", losses)
    losses.fill(nan[F32]())
    cross_entropy_forward_backward(team, losses, padded, padded, targets, rows, V, stride, 1 / Float32(rows))
    g.check(team, "losses", losses)
    var dlogits = g.fresh(rows * V)
    for row in range(rows):
        for v in range(V):
            dlogits[row * V + v] = padded[row * stride + v]
        for v in range(V, stride):
            if not isnan(padded[row * stride + v]):
                raise Error("cross entropy wrote into the padding")
    g.check(team, "dlogits", dlogits)


def main() raises:
    compare("cross_entropy", check_cross_entropy)
