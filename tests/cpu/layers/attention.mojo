"""Attention against the goldens."""

from goldens import Goldens, compare

from llm.cpu.attention import attention_backward, attention_forward, attention_workspace_size
from llm.cpu.threads.crew import Team


def check_attention(mut g: Goldens, team: Team) raises:
    var B, T, C, NH = g.size("B"), g.size("T"), g.size("C"), g.size("NH")
    var workspace = g.fresh(attention_workspace_size(T, C // NH, team.size))
    var qkv, dout = g.load("inp"), g.load("dout")
    var output, logsumexp, dqkv = g.fresh(B * T * C), g.fresh(B * NH * T), g.fresh(B * T * 3 * C)
    attention_forward(team, workspace, output, logsumexp, qkv, B, T, C, NH)
    g.check(team, "out", output)
    attention_backward(team, workspace, dqkv, dout, qkv, output, logsumexp, B, T, C, NH)
    g.check(team, "dinp", dqkv)


def main() raises:
    compare("attention", check_attention)
