"""Compares each layer of `llm/cpu`, forward and backward, with goldens from the PyTorch reference in float64.

Usage: layers FOLDER, where `llm_mojo.reference.layer_goldens` has written them. Run by tests/test_layers.py. Outputs start
as NaN, so that what is not written shows; every layer runs on 1, 2, 3 and 7 threads and must give the same bits each time.
"""

from std.math import exp2 as exact_exp2, isnan, nan
from std.sys import argv, exit

from llm.base.memory import Arena, Tensor
from llm.cpu.adamw import AdamWSettings, adamw_update
from llm.cpu.attention import attention_backward, attention_forward, attention_workspace_size
from llm.cpu.cross_entropy import cross_entropy_forward, cross_entropy_forward_backward
from llm.cpu.embedding import embedding_backward, embedding_forward
from llm.cpu.gelu import gelu, gelu_and_grad
from llm.cpu.gemm import Bias, Plain, gemm_workspace_size
from llm.cpu.global_norm import norm_of_blocks, num_norm_blocks
from llm.cpu.layernorm import layernorm_backward, layernorm_forward, layernorm_recompute
from llm.cpu.linear import linear_backward_bias, linear_backward_input, linear_backward_weight, linear_forward
from llm.cpu.simd.vector_math import exp2
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

    def __init__(out self, folder: String) raises:
        self.folder = folder
        self.layer = ""
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


def test_layernorm(mut g: Goldens, team: Team) raises:
    g.layer = "layernorm"
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


def test_linear(mut g: Goldens, team: Team) raises:
    g.layer = "linear"
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


def test_attention(mut g: Goldens, team: Team) raises:
    g.layer = "attention"
    var B, T, C, NH = g.size("B"), g.size("T"), g.size("C"), g.size("NH")
    var workspace = g.fresh(attention_workspace_size(T, C // NH, team.size))
    var qkv, dout = g.load("inp"), g.load("dout")
    var output, logsumexp, dqkv = g.fresh(B * T * C), g.fresh(B * NH * T), g.fresh(B * T * 3 * C)
    attention_forward(team, workspace, output, logsumexp, qkv, B, T, C, NH)
    g.check(team, "out", output)
    attention_backward(team, workspace, dqkv, dout, qkv, output, logsumexp, B, T, C, NH)
    g.check(team, "dinp", dqkv)


def test_exp2() raises:
    var x = Float32(-140)
    while x < 127:
        var expected = exact_exp2(max(x, -125).cast[DType.float64]())
        var ours = exp2(SIMD[F32, 4](x))[0].cast[DType.float64]()
        if not (abs(ours / expected - 1) < 2e-7):
            raise Error(t"exp2({x}) = {ours}, not {expected}")
        x += 0.0078
    if not isnan(exp2(SIMD[F32, 4](nan[F32]()))[0]):
        raise Error("exp2 loses a NaN")


def test_gelu(mut g: Goldens, team: Team) raises:
    g.layer = "gelu"
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


def test_embedding(mut g: Goldens, team: Team) raises:
    g.layer = "embedding"
    var B, T, C = g.size("B"), g.size("T"), g.size("C")
    var tokens = g.load[DType.int32]("tokens")
    var wte, wpe, dout = g.load("wte"), g.load("wpe"), g.load("dout")
    var output, dwte, dwpe = g.fresh(B * T * C), g.fresh(wte.size), g.fresh(wpe.size)
    dwte.fill(0)
    embedding_forward(team, output, tokens, wte, wpe, B, T, C)
    g.check(team, "out", output)
    embedding_backward(team, dwte, dwpe, dout, tokens, B, T, C, accumulate=False)
    g.check(team, "dwte", dwte)
    g.check(team, "dwpe", dwpe)
    embedding_backward(team, dwte, dwpe, dout, tokens, B, T, C, accumulate=True)
    halve(dwte)
    halve(dwpe)
    g.check(team, "dwte", dwte)
    g.check(team, "dwpe", dwpe)


def test_cross_entropy(mut g: Goldens, team: Team) raises:
    g.layer = "cross_entropy"
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


def test_adamw(mut g: Goldens, team: Team) raises:
    g.layer = "adamw"
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


def test_global_norm(mut g: Goldens, team: Team) raises:
    g.layer = "global_norm"
    var grad = g.load("inp")
    var other = g.fresh(grad.size)
    other.fill(1)
    var sums = g.fresh(num_norm_blocks(grad.size))
    var settings = AdamWSettings(0, 0, 0, 1, 0)
    adamw_update(team, other, other, grad, g.copy(other), g.copy(other), sums, settings, 1)
    var norm = g.fresh(1)
    norm[0] = norm_of_blocks(sums)
    g.check(team, "out", norm)


def halve(x: Tensor[F32]):
    for i in range(x.size):
        x[i] = x[i] / 2


def main() raises:
    test_exp2()
    var g = Goldens(String(argv()[1]))
    for threads in [1, 2, 3, 7]:
        var team = Team(threads)
        g.checks = 0
        test_layernorm(g, team)
        test_linear(g, team)
        test_attention(g, team)
        test_gelu(g, team)
        test_embedding(g, team)
        test_cross_entropy(g, team)
        test_adamw(g, team)
        test_global_norm(g, team)
    if g.failures > 0:
        exit(1)
