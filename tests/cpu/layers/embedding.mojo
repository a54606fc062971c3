"""The embedding against the goldens."""

from goldens import Goldens, compare, halve

from llm.cpu.embedding import embedding_backward, embedding_forward
from llm.cpu.threads.crew import Team


def check_embedding(mut g: Goldens, team: Team) raises:
    var B, T, C = g.size("B"), g.size("T"), g.size("C")
    var tokens = g.load[DType.int32]("tokens")
    var wte, wpe, dout = g.load("wte"), g.load("wpe"), g.load("dout")
    var output, dwte, dwpe = g.fresh(B * T * C), g.fresh(wte.size), g.fresh(wpe.size)
    dwte.fill(0)
    var positions = g.arena.carve[DType.int32](T)
    for t in range(T):
        positions[t] = Int32(t)
    embedding_forward(team, output, tokens, positions, wte, wpe, B * T, C)
    g.check(team, "out", output)
    embedding_backward(team, dwte, dwpe, dout, tokens, B, T, C, accumulate=False)
    g.check(team, "dwte", dwte)
    g.check(team, "dwpe", dwpe)
    embedding_backward(team, dwte, dwpe, dout, tokens, B, T, C, accumulate=True)
    halve(dwte)
    halve(dwpe)
    g.check(team, "dwte", dwte)
    g.check(team, "dwpe", dwpe)


def main() raises:
    compare("embedding", check_embedding)
