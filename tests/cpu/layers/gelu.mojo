"""GELU against the goldens."""

from goldens import Goldens, compare

from llm.cpu.gelu import gelu, gelu_and_grad
from llm.cpu.threads.crew import Team


def check_gelu(mut g: Goldens, team: Team) raises:
    var N = g.size("N")
    var inp, dout = g.load("inp"), g.load("dout")
    var output, dinp = g.fresh(N), g.fresh(N)
    for i in range(N):
        var value, grad = gelu_and_grad(inp[i])
        if value != gelu(inp[i]):
            raise Error("gelu_and_grad differs from gelu")
        output[i] = value
        dinp[i] = dout[i] * grad
    g.check(team, "out", output)
    g.check(team, "dinp", dinp)


def main() raises:
    compare("gelu", check_gelu)
