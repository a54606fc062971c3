"""Layer normalisation against the goldens."""

from goldens import Goldens, compare, halve

from llm.cpu.layernorm import layernorm_backward, layernorm_forward, layernorm_recompute
from llm.cpu.threads.crew import Team


def check_layernorm(mut g: Goldens, team: Team) raises:
    var C = g.size("C")
    var rows = g.size("B") * g.size("T")
    var inp, weight, bias, dout = g.load("inp"), g.load("weight"), g.load("bias"), g.load("dout")
    var output, mean, rstd = g.fresh(rows * C), g.fresh(rows), g.fresh(rows)
    layernorm_forward(team, output, mean, rstd, inp, weight, bias, rows, C)
    g.check(team, "out", output)
    var again = g.fresh(rows * C)
    layernorm_recompute(team, again, inp, mean, rstd, weight, bias, rows, C)
    for i in range(rows * C):
        if again[i] != output[i]:
            raise Error("layernorm_recompute differs from layernorm_forward")
    var dinp, dweight, dbias = g.fresh(rows * C), g.fresh(C), g.fresh(C)
    layernorm_backward[add_to_dinp=False](
        team, dinp, dinp, dweight, dbias, dout, inp, mean, rstd, weight, rows, C, accumulate=False
    )
    g.check(team, "dinp", dinp)
    g.check(team, "dweight", dweight)
    g.check(team, "dbias", dbias)
    # The same once more, added to what is there: twice the gradient.
    layernorm_backward(team, dinp, dinp, dweight, dbias, dout, inp, mean, rstd, weight, rows, C, accumulate=True)
    for gradient in [dinp, dweight, dbias]:
        halve(gradient)
    g.check(team, "dinp", dinp)
    g.check(team, "dweight", dweight)
    g.check(team, "dbias", dbias)


def main() raises:
    compare("layernorm", check_layernorm)
