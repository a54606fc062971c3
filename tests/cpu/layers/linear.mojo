"""Linear layers against the goldens."""

from goldens import Goldens, compare, halve

from llm.cpu.gemm import Bias, Plain, gemm_workspace_size
from llm.cpu.linear import linear_backward_bias, linear_backward_input, linear_backward_weight, linear_forward
from llm.cpu.threads.crew import Team


def check_linear(mut g: Goldens, team: Team) raises:
    var C, OC = g.size("C"), g.size("OC")
    var rows = g.size("B") * g.size("T")
    var workspace = g.fresh(gemm_workspace_size(team.size))
    var inp, weight, bias, dout = g.load("inp"), g.load("weight"), g.load("bias"), g.load("dout")
    var output, dinp, dweight, dbias = g.fresh(rows * OC), g.fresh(rows * C), g.fresh(OC * C), g.fresh(OC)
    linear_forward(team, workspace, output, inp, weight, rows, C, OC, Bias(bias))
    g.check(team, "out", output)
    linear_backward_input(team, workspace, dinp, dout, weight, rows, C, OC, Plain())
    g.check(team, "dinp", dinp)
    linear_backward_weight(team, workspace, dweight, dout, inp, rows, C, OC, accumulate=False)
    linear_backward_bias(team, dbias, dout, rows, OC, accumulate=False)
    g.check(team, "dweight", dweight)
    g.check(team, "dbias", dbias)
    linear_backward_weight(team, workspace, dweight, dout, inp, rows, C, OC, accumulate=True)
    linear_backward_bias(team, dbias, dout, rows, OC, accumulate=True)
    halve(dweight)
    halve(dbias)
    g.check(team, "dweight", dweight)
    g.check(team, "dbias", dbias)


def main() raises:
    compare("linear", check_linear)
