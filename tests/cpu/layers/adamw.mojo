"""AdamW, and the gradient norm that it computes on its way, against the goldens."""

from goldens import Goldens, compare, halve

from llm.cpu.adamw import AdamWSettings, adamw_update
from llm.cpu.global_norm import norm_of_blocks, num_norm_blocks
from llm.cpu.threads.crew import Team


def check_adamw(mut g: Goldens, team: Team) raises:
    var param, grad, m, v = g.load("param"), g.load("grad"), g.load("m"), g.load("v")
    var sums = g.fresh(num_norm_blocks(param.size))
    var settings = AdamWSettings(
        Float32(g.number("lr")),
        Float32(g.number("beta1")),
        Float32(g.number("beta2")),
        Float32(g.number("eps")),
        Float32(g.number("weight_decay")),
    )
    # Half the step's gradient at twice the scale is the whole.
    halve(grad)
    adamw_update(team, param, param, grad, m, v, sums, settings, g.size("step"), grad_scale=2)
    g.check(team, "param_out", param)
    g.check(team, "m_out", m)
    g.check(team, "v_out", v)


def check_global_norm(mut g: Goldens, team: Team) raises:
    var grad = g.load("inp")
    var other = g.fresh(grad.size)
    other.fill(1)
    var sums = g.fresh(num_norm_blocks(grad.size))
    var settings = AdamWSettings(0, 0, 0, 1, 0)
    adamw_update(team, other, other, grad, g.copy(other), g.copy(other), sums, settings, 1)
    var norm = g.fresh(1)
    norm[0] = norm_of_blocks(sums)
    g.check(team, "out", norm)


def main() raises:
    compare("adamw", check_adamw)
    compare("global_norm", check_global_norm)
