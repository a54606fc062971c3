"""Training GPT-2 in one file of plain loops: no vectors, no threads, nothing imported but the standard library.

Read it beside the paper, "Language Models are Unsupervised Multitask Learners" (2019), whose network is the decoder of
"Attention Is All You Need" (2017) with the layernorms moved to the front of each sub-layer. From top to bottom:

1. memory and the two inner loops that everything is made of,
2. the layers, each with its backward pass directly below,
3. the model: sizes, parameters, activations, forward, backward, AdamW,
4. token shards in shuffled order, and the tokenizer,
5. sampling, the training loop and its options.

Capitals are dimensions: B sequences of T tokens, N = B*T tokens in all, C channels, NH heads of HS = C / NH channels,
V words in the vocabulary, OC output channels. Lower case letters count them: b, t, n, c, h. Arrays are stored row by
row, so `out_n = output + n * C` is row n of an (N, C) array. `dX` is the gradient of the loss with respect to X;
backward passes add into it, because what is used twice receives two contributions.

Files, batches and random numbers are those of llm.c's train_gpt2.c (https://github.com/karpathy/llm.c), so that the
losses can be compared line by line.
"""

from std.ffi import external_call, get_errno
from std.math import exp, log, sqrt, tanh
from std.os import listdir, stat
from std.os.path import isdir, isfile
from std.sys import argv, exit
from std.time import perf_counter_ns

comptime VERSION = "0.1.0"

# ----------------------------------------------------------------------------------------------------------------------
# 1. Memory and the inner loops


@fieldwise_init
struct Floats(TrivialRegisterPassable):
    """A place in memory from which fp32 numbers are counted: `x[i]` is a number, `x + i` is the place of x[i].

    It neither owns the numbers nor knows how many there are, like a pointer in C.
    """

    var pointer: Pointer[Float32, MutUntrackedOrigin]

    @always_inline
    def __getitem__(self, i: Int) -> Float32:
        return self.pointer[unsafe_offset=i]

    @always_inline
    def __setitem__(self, i: Int, value: Float32):
        self.pointer[unsafe_offset=i] = value

    @always_inline
    def __add__(self, i: Int) -> Self:
        return Self(self.pointer.unsafe_offset(i))


struct Memory(Movable):
    """Owner of arrays, which live as long as it does."""

    var arrays: List[List[Float32]]

    def __init__(out self):
        self.arrays = []

    def zeros(mut self, size: Int) -> Floats:
        """Returns a new array of zeros."""
        self.arrays.append(List[Float32](length=size, fill=0))
        var start = self.arrays[len(self.arrays) - 1].unsafe_ptr()
        return Floats(Pointer[Float32, MutUntrackedOrigin](unsafe_from_address=Int(start)))

    def clear(mut self):
        """Sets all arrays to zero."""
        for ref array in self.arrays:
            for i in range(len(array)):
                array[i] = 0


def dot(a: Floats, b: Floats, size: Int) -> Float32:
    """Returns the sum of a[i] * b[i].

    Eight partial sums: with a single one every addition would have to wait for the one before it.
    """
    var sums = Array[Float32, 8](fill=0)
    var whole = size // 8 * 8
    for i in range(0, whole, 8):
        comptime for j in range(8):
            sums[j] += a[i + j] * b[i + j]
    for i in range(whole, size):
        sums[0] += a[i] * b[i]
    return ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]))


def add_scaled(y: Floats, scale: Float32, x: Floats, size: Int):
    """Adds scale * x[i] to y[i].

    Eight at a time are computed before any is stored: the compiler has to expect that a store to y changes x.
    """
    var whole = size // 8 * 8
    for i in range(0, whole, 8):
        var sums = Array[Float32, 8](fill=0)
        comptime for j in range(8):
            sums[j] = y[i + j] + scale * x[i + j]
        comptime for j in range(8):
            y[i + j] = sums[j]
    for i in range(whole, size):
        y[i] += scale * x[i]


# ----------------------------------------------------------------------------------------------------------------------
# 2. The layers


def embedding_forward(output: Floats, tokens: List[Int], wte: Floats, wpe: Floats, B: Int, T: Int, C: Int):
    """Computes output[b,t] = wte[tokens[b,t]] + wpe[t], what the token is plus where it stands.

    tokens (B,T), wte (V,C), wpe (maxT,C), output (B,T,C).
    """
    for b in range(B):
        for t in range(T):
            var out_bt = output + (b * T + t) * C
            var wte_bt = wte + tokens[b * T + t] * C
            var wpe_t = wpe + t * C
            for c in range(C):
                out_bt[c] = wte_bt[c] + wpe_t[c]


def embedding_backward(dwte: Floats, dwpe: Floats, dout: Floats, tokens: List[Int], B: Int, T: Int, C: Int):
    """Adds each row of dout to the two rows it was made of. Shapes as in `embedding_forward`."""
    for b in range(B):
        for t in range(T):
            var dout_bt = dout + (b * T + t) * C
            add_scaled(dwte + tokens[b * T + t] * C, 1, dout_bt, C)
            add_scaled(dwpe + t * C, 1, dout_bt, C)


def layernorm_forward(output: Floats, inp: Floats, weight: Floats, bias: Floats, N: Int, C: Int):
    """Computes output = norm * weight + bias with norm = (inp - mean) * rstd, for each row by its own mean and rstd.

    output and inp (N,C), weight and bias (C).
    """
    for n in range(N):
        var inp_n = inp + n * C
        var out_n = output + n * C
        var mean, rstd = mean_and_rstd(inp_n, C)
        for c in range(C):
            out_n[c] = (inp_n[c] - mean) * rstd * weight[c] + bias[c]


def layernorm_backward(
    dinp: Floats, dweight: Floats, dbias: Floats, dout: Floats, inp: Floats, weight: Floats, N: Int, C: Int
):
    """Adds to the gradients of a layernorm. Shapes as in `layernorm_forward`.

    With dnorm = dout * weight: dinp = rstd * (dnorm - mean(dnorm) - norm * mean(dnorm * norm)),
    dweight = sum_n dout * norm, dbias = sum_n dout. The two means are there because an input moves the row's mean and
    variance, and with them all its outputs.
    """
    for n in range(N):
        var inp_n = inp + n * C
        var dinp_n = dinp + n * C
        var dout_n = dout + n * C
        var mean, rstd = mean_and_rstd(inp_n, C)
        var dnorm_mean = Float32(0)
        var dnorm_norm_mean = Float32(0)
        for c in range(C):
            var norm = (inp_n[c] - mean) * rstd
            var dnorm = dout_n[c] * weight[c]
            dnorm_mean += dnorm / Float32(C)
            dnorm_norm_mean += dnorm * norm / Float32(C)
        for c in range(C):
            var norm = (inp_n[c] - mean) * rstd
            var dnorm = dout_n[c] * weight[c]
            dinp_n[c] += rstd * (dnorm - dnorm_mean - norm * dnorm_norm_mean)
            dweight[c] += dout_n[c] * norm
            dbias[c] += dout_n[c]


def mean_and_rstd(x: Floats, C: Int) -> Tuple[Float32, Float32]:
    """Returns the mean of C numbers and one over their standard deviation, 1 / sqrt(variance + 1e-5)."""
    var sum = Float32(0)
    for c in range(C):
        sum += x[c]
    var mean = sum / Float32(C)
    var squares = Float32(0)
    for c in range(C):
        squares += (x[c] - mean) * (x[c] - mean)
    return mean, 1 / sqrt(squares / Float32(C) + 1e-5)


def linear_forward(output: Floats, inp: Floats, weight: Floats, bias: Optional[Floats], N: Int, C: Int, OC: Int):
    """Computes output = inp @ weight^T + bias.

    inp (N,C), weight (OC,C), bias (OC) or none, output (N,OC). Nearly all the time of training is spent here and in
    the backward pass. The loop over outputs is outside, so that a large weight matrix is read once.
    """
    for o in range(OC):
        var bias_o = bias.value()[o] if bias else Float32(0)
        for n in range(N):
            output[n * OC + o] = bias_o + dot(inp + n * C, weight + o * C, C)


def linear_backward(
    dinp: Floats,
    dweight: Floats,
    dbias: Optional[Floats],
    dout: Floats,
    inp: Floats,
    weight: Floats,
    N: Int,
    C: Int,
    OC: Int,
):
    """Adds dinp = dout @ weight, dweight = dout^T @ inp and dbias = sum_n dout. Shapes as in `linear_forward`."""
    for o in range(OC):
        for n in range(N):
            var d = dout[n * OC + o]
            add_scaled(dinp + n * C, d, weight + o * C, C)
            add_scaled(dweight + o * C, d, inp + n * C, C)
            if dbias:
                dbias.value()[o] += d


def attention_forward(output: Floats, att: Floats, qkv: Floats, B: Int, T: Int, C: Int, NH: Int):
    """Lets every position gather values from itself and the positions before it, in each head separately.

    att[t,:] = softmax over t2 <= t of q[t] . k[t2] / sqrt(HS), output[t] = sum over t2 <= t of att[t,t2] * v[t2].
    qkv (B,T,3C) holds query, key and value of all heads side by side, att (B,NH,T,T) is kept for the backward pass,
    output is (B,T,C). This is the only layer in which positions see each other.
    """
    var HS = C // NH
    var scale = 1 / sqrt(Float32(HS))
    for b in range(B):
        for h in range(NH):
            var q = qkv + b * T * 3 * C + h * HS
            var k = q + C
            var v = q + 2 * C
            for t in range(T):
                var att_t = att + ((b * NH + h) * T + t) * T
                for t2 in range(t + 1):
                    att_t[t2] = scale * dot(q + t * 3 * C, k + t2 * 3 * C, HS)
                softmax(att_t, att_t, t + 1)
                var out_t = output + (b * T + t) * C + h * HS
                for c in range(HS):
                    out_t[c] = 0
                for t2 in range(t + 1):
                    add_scaled(out_t, att_t[t2], v + t2 * 3 * C, HS)


def attention_backward(
    dqkv: Floats, datt: Floats, dout: Floats, qkv: Floats, att: Floats, B: Int, T: Int, C: Int, NH: Int
):
    """Adds to dqkv by going backward through the weighted sum, the softmax and the scores of `attention_forward`.

    For each t, and t2 and t3 up to t: dv[t2] += att[t2] * dout[t], datt[t2] = dout[t] . v[t2],
    dscore[t2] = att[t2] * (datt[t2] - sum over t3 of att[t3] * datt[t3]), dq[t] += dscore[t2] * k[t2] / sqrt(HS),
    dk[t2] += dscore[t2] * q[t] / sqrt(HS). datt (B,NH,T,T) is overwritten.
    """
    var HS = C // NH
    var scale = 1 / sqrt(Float32(HS))
    for b in range(B):
        for h in range(NH):
            var q = qkv + b * T * 3 * C + h * HS
            var k = q + C
            var v = q + 2 * C
            var dq = dqkv + b * T * 3 * C + h * HS
            var dk = dq + C
            var dv = dq + 2 * C
            for t in range(T):
                var att_t = att + ((b * NH + h) * T + t) * T
                var datt_t = datt + ((b * NH + h) * T + t) * T
                var dout_t = dout + (b * T + t) * C + h * HS
                for t2 in range(t + 1):
                    add_scaled(dv + t2 * 3 * C, att_t[t2], dout_t, HS)
                    datt_t[t2] = dot(dout_t, v + t2 * 3 * C, HS)
                var datt_mean = dot(att_t, datt_t, t + 1)
                for t2 in range(t + 1):
                    var dscore = att_t[t2] * (datt_t[t2] - datt_mean)
                    add_scaled(dq + t * 3 * C, scale * dscore, k + t2 * 3 * C, HS)
                    add_scaled(dk + t2 * 3 * C, scale * dscore, q + t * 3 * C, HS)


comptime GELU_SCALE = Float32(0.7978845608028654)
"""The square root of 2 / pi."""


def gelu_forward(output: Floats, inp: Floats, size: Int):
    """Computes output = x/2 * (1 + tanh(u)) with u = sqrt(2/pi) * (x + 0.044715 x^3), a smooth step from 0 to x."""
    for i in range(size):
        var x = inp[i]
        var u = GELU_SCALE * (x + 0.044715 * x * x * x)
        output[i] = 0.5 * x * (1 + tanh(u))


def gelu_backward(dinp: Floats, dout: Floats, inp: Floats, size: Int):
    """Adds dinp = dout * ((1 + tanh(u))/2 + x/2 * (1 - tanh(u)^2) * du/dx) with u as in `gelu_forward`."""
    for i in range(size):
        var x = inp[i]
        var tanh_u = tanh(GELU_SCALE * (x + 0.044715 * x * x * x))
        var du = GELU_SCALE * (1 + 3 * 0.044715 * x * x)
        dinp[i] += dout[i] * (0.5 * (1 + tanh_u) + 0.5 * x * (1 - tanh_u * tanh_u) * du)


def residual_forward(output: Floats, inp1: Floats, inp2: Floats, size: Int):
    """Computes output = inp1 + inp2."""
    for i in range(size):
        output[i] = inp1[i] + inp2[i]


def residual_backward(dinp1: Floats, dinp2: Floats, dout: Floats, size: Int):
    """Adds dout to the gradients of both terms."""
    add_scaled(dinp1, 1, dout, size)
    add_scaled(dinp2, 1, dout, size)


def softmax(probs: Floats, scores: Floats, size: Int):
    """Computes probs[i] = exp(scores[i]) / sum over j of exp(scores[j]), in one row, which may be the same for both.

    The highest score is subtracted first: it changes nothing but keeps exp from overflowing.
    """
    var highest = scores[0]
    for i in range(size):
        highest = max(highest, scores[i])
    var sum = Float32(0)
    for i in range(size):
        probs[i] = exp(scores[i] - highest)
        sum += probs[i]
    for i in range(size):
        probs[i] /= sum


def crossentropy_forward(probs: Floats, targets: List[Int], N: Int, V: Int) -> Float64:
    """Returns the loss, the mean over n of -log(probs[n, targets[n]]). probs (N,V), targets (N)."""
    var sum = Float64(0)
    for n in range(N):
        sum -= Float64(log(probs[n * V + targets[n]]))
    return sum / Float64(N)


def crossentropy_softmax_backward(dlogits: Floats, probs: Floats, targets: List[Int], N: Int, V: Int):
    """Adds dlogits = (probs - onehot(targets)) / N, the gradient through loss and softmax at once."""
    for n in range(N):
        for v in range(V):
            var wanted = Float32(1) if v == targets[n] else Float32(0)
            dlogits[n * V + v] += (probs[n * V + v] - wanted) / Float32(N)


# ----------------------------------------------------------------------------------------------------------------------
# 3. The model


@fieldwise_init
struct GPT2Config(Copyable, Movable):
    """The sizes of a GPT-2."""

    var max_seq_len: Int  # maxT, the longest sequence
    var vocab_size: Int  # V, the number of different tokens
    var num_layers: Int  # L, the number of blocks
    var num_heads: Int  # NH
    var channels: Int  # C
    var padded_vocab_size: Int  # Vp, rows of wte: those from V on are padding, which nothing here reads

    def num_parameters(self) -> Int:
        """Returns the number of parameters, padding included."""
        var C = self.channels
        return (self.padded_vocab_size + self.max_seq_len) * C + self.num_layers * (12 * C * C + 13 * C) + 2 * C


struct BlockParameters(TrivialRegisterPassable):
    """The parameters of one block, or their gradients."""

    var ln1w: Floats  # (C)
    var ln1b: Floats  # (C)
    var qkvw: Floats  # (3C, C)
    var qkvb: Floats  # (3C)
    var attprojw: Floats  # (C, C)
    var attprojb: Floats  # (C)
    var ln2w: Floats  # (C)
    var ln2b: Floats  # (C)
    var fcw: Floats  # (4C, C)
    var fcb: Floats  # (4C)
    var fcprojw: Floats  # (C, 4C)
    var fcprojb: Floats  # (C)

    def __init__(out self, start: Floats, l: Int, L: Int, C: Int):
        """Finds the tensors of layer l. Those of all layers lie together: L times ln1w, L times ln1b, and so on."""
        var next = start

        def take(size: Int) {mut next, imm} -> Floats:
            var tensor = next + l * size
            next = next + L * size
            return tensor

        self.ln1w = take(C)
        self.ln1b = take(C)
        self.qkvw = take(3 * C * C)
        self.qkvb = take(3 * C)
        self.attprojw = take(C * C)
        self.attprojb = take(C)
        self.ln2w = take(C)
        self.ln2b = take(C)
        self.fcw = take(4 * C * C)
        self.fcb = take(4 * C)
        self.fcprojw = take(C * 4 * C)
        self.fcprojb = take(C)


struct Parameters(Movable):
    """The 16 parameter tensors, or their gradients, in one array of `size` numbers in the order of llm.c's files."""

    var all: Floats
    var size: Int
    var wte: Floats  # (Vp, C)
    var wpe: Floats  # (maxT, C)
    var blocks: List[BlockParameters]
    var lnfw: Floats  # (C)
    var lnfb: Floats  # (C)

    def __init__(out self, config: GPT2Config, mut memory: Memory):
        var C = config.channels
        self.size = config.num_parameters()
        self.all = memory.zeros(self.size)
        self.wte = self.all
        self.wpe = self.wte + config.padded_vocab_size * C
        self.blocks = []
        for l in range(config.num_layers):
            self.blocks.append(BlockParameters(self.wpe + config.max_seq_len * C, l, config.num_layers, C))
        self.lnfw = self.all + (self.size - 2 * C)
        self.lnfb = self.lnfw + C


struct BlockActivations(TrivialRegisterPassable):
    """What one block computes, in order, or the gradients of it."""

    var ln1: Floats  # (B, T, C)
    var qkv: Floats  # (B, T, 3C)
    var att: Floats  # (B, NH, T, T)
    var atty: Floats  # (B, T, C)
    var attproj: Floats  # (B, T, C)
    var residual2: Floats  # (B, T, C)
    var ln2: Floats  # (B, T, C)
    var fch: Floats  # (B, T, 4C)
    var fch_gelu: Floats  # (B, T, 4C)
    var fcproj: Floats  # (B, T, C)
    var residual3: Floats  # (B, T, C)

    def __init__(out self, config: GPT2Config, B: Int, T: Int, mut memory: Memory):
        var N = B * T
        var C = config.channels
        self.ln1 = memory.zeros(N * C)
        self.qkv = memory.zeros(N * 3 * C)
        self.att = memory.zeros(B * config.num_heads * T * T)
        self.atty = memory.zeros(N * C)
        self.attproj = memory.zeros(N * C)
        self.residual2 = memory.zeros(N * C)
        self.ln2 = memory.zeros(N * C)
        self.fch = memory.zeros(N * 4 * C)
        self.fch_gelu = memory.zeros(N * 4 * C)
        self.fcproj = memory.zeros(N * C)
        self.residual3 = memory.zeros(N * C)


struct Activations(Movable):
    """What the forward pass computes, in order, or the gradients of it (where probs has no use)."""

    var encoded: Floats  # (B, T, C)
    var blocks: List[BlockActivations]
    var lnf: Floats  # (B, T, C)
    var logits: Floats  # (B, T, V)
    var probs: Floats  # (B, T, V)

    def __init__(out self, config: GPT2Config, B: Int, T: Int, mut memory: Memory):
        var N = B * T
        self.encoded = memory.zeros(N * config.channels)
        self.blocks = []
        for _ in range(config.num_layers):
            self.blocks.append(BlockActivations(config, B, T, memory))
        self.lnf = memory.zeros(N * config.channels)
        self.logits = memory.zeros(N * config.vocab_size)
        self.probs = memory.zeros(N * config.vocab_size)


struct GPT2(Movable):
    """A GPT-2 with everything that training needs, for batches of up to B sequences of T tokens."""

    var config: GPT2Config
    var params: Parameters
    var grads: Parameters
    var m: Floats  # running mean of each parameter's gradient, for AdamW
    var v: Floats  # running mean of each parameter's squared gradient, for AdamW
    var acts: Activations
    var grads_acts: Activations
    var memory: Memory  # owner of parameters, moments and activations
    var grads_memory: Memory  # owner of all gradients

    def __init__(out self, path: String, var config: GPT2Config, B: Int, T: Int) raises:
        """Reads an llm.c checkpoint, of which `read_checkpoint_header` has returned the sizes."""
        self.config = config^
        self.memory = Memory()
        self.grads_memory = Memory()
        self.params = Parameters(self.config, self.memory)
        self.grads = Parameters(self.config, self.grads_memory)
        self.m = self.memory.zeros(self.params.size)
        self.v = self.memory.zeros(self.params.size)
        self.acts = Activations(self.config, B, T, self.memory)
        self.grads_acts = Activations(self.config, B, T, self.grads_memory)
        with open(path, "r") as file:
            _ = file.seek(HEADER_BYTES)
            _ = file.read(Span(unsafe_ptr=self.params.all.pointer, length=self.params.size))

    def forward(mut self, tokens: List[Int], B: Int, T: Int):
        """Computes probs[b,t,:], how likely each token is to follow tokens[b,:t+1]. tokens (B,T), probs (B,T,V)."""
        ref params = self.params
        ref acts = self.acts
        var C = self.config.channels
        var V = self.config.vocab_size
        var N = B * T
        embedding_forward(acts.encoded, tokens, params.wte, params.wpe, B, T, C)
        var residual = acts.encoded
        for l in range(self.config.num_layers):
            ref p = params.blocks[l]
            ref a = acts.blocks[l]
            layernorm_forward(a.ln1, residual, p.ln1w, p.ln1b, N, C)
            linear_forward(a.qkv, a.ln1, p.qkvw, p.qkvb, N, C, 3 * C)
            attention_forward(a.atty, a.att, a.qkv, B, T, C, self.config.num_heads)
            linear_forward(a.attproj, a.atty, p.attprojw, p.attprojb, N, C, C)
            residual_forward(a.residual2, residual, a.attproj, N * C)
            layernorm_forward(a.ln2, a.residual2, p.ln2w, p.ln2b, N, C)
            linear_forward(a.fch, a.ln2, p.fcw, p.fcb, N, C, 4 * C)
            gelu_forward(a.fch_gelu, a.fch, N * 4 * C)
            linear_forward(a.fcproj, a.fch_gelu, p.fcprojw, p.fcprojb, N, 4 * C, C)
            residual_forward(a.residual3, a.residual2, a.fcproj, N * C)
            residual = a.residual3
        layernorm_forward(acts.lnf, residual, params.lnfw, params.lnfb, N, C)
        # The token embeddings serve a second time: a logit is the product of the output with a token's embedding.
        linear_forward(acts.logits, acts.lnf, params.wte, None, N, C, V)
        for n in range(N):
            softmax(acts.probs + n * V, acts.logits + n * V, V)

    def loss(self, targets: List[Int]) -> Float64:
        """Returns the mean loss of the last forward pass. targets (B,T): the tokens that did follow."""
        return crossentropy_forward(self.acts.probs, targets, len(targets), self.config.vocab_size)

    def backward(mut self, tokens: List[Int], targets: List[Int], B: Int, T: Int):
        """Computes the gradients of the loss: the forward pass in reverse. tokens and targets are those of the loss."""
        ref params = self.params
        ref grads = self.grads
        ref acts = self.acts
        ref dacts = self.grads_acts
        var C = self.config.channels
        var V = self.config.vocab_size
        var L = self.config.num_layers
        var N = B * T
        self.grads_memory.clear()
        crossentropy_softmax_backward(dacts.logits, acts.probs, targets, N, V)
        linear_backward(dacts.lnf, grads.wte, None, dacts.logits, acts.lnf, params.wte, N, C, V)
        var residual = acts.blocks[L - 1].residual3
        var dresidual = dacts.blocks[L - 1].residual3
        layernorm_backward(dresidual, grads.lnfw, grads.lnfb, dacts.lnf, residual, params.lnfw, N, C)
        for l in reversed(range(L)):
            ref p = params.blocks[l]
            ref dp = grads.blocks[l]
            ref a = acts.blocks[l]
            ref da = dacts.blocks[l]
            residual = acts.blocks[l - 1].residual3 if l > 0 else acts.encoded
            dresidual = dacts.blocks[l - 1].residual3 if l > 0 else dacts.encoded
            residual_backward(da.residual2, da.fcproj, da.residual3, N * C)
            linear_backward(da.fch_gelu, dp.fcprojw, dp.fcprojb, da.fcproj, a.fch_gelu, p.fcprojw, N, 4 * C, C)
            gelu_backward(da.fch, da.fch_gelu, a.fch, N * 4 * C)
            linear_backward(da.ln2, dp.fcw, dp.fcb, da.fch, a.ln2, p.fcw, N, C, 4 * C)
            layernorm_backward(da.residual2, dp.ln2w, dp.ln2b, da.ln2, a.residual2, p.ln2w, N, C)
            residual_backward(dresidual, da.attproj, da.residual2, N * C)
            linear_backward(da.atty, dp.attprojw, dp.attprojb, da.attproj, a.atty, p.attprojw, N, C, C)
            attention_backward(da.qkv, da.att, da.atty, a.qkv, a.att, B, T, C, self.config.num_heads)
            linear_backward(da.ln1, dp.qkvw, dp.qkvb, da.qkv, a.ln1, p.qkvw, N, C, 3 * C)
            layernorm_backward(dresidual, dp.ln1w, dp.ln1b, da.ln1, residual, p.ln1w, N, C)
        embedding_backward(grads.wte, grads.wpe, dacts.encoded, tokens, B, T, C)

    def update(mut self, step: Int, learning_rate: Float32, weight_decay: Float32):
        """Does one step of AdamW ("Decoupled Weight Decay Regularization", 2017), `step` counting from 1.

        m and v are running means of the gradient and its square. They start at zero, which the division by
        1 - beta^step corrects: param -= learning_rate * (m_hat / (sqrt(v_hat) + eps) + weight_decay * param).
        """
        comptime BETA1 = 0.9
        comptime BETA2 = 0.999
        comptime EPS = 1e-8
        var m_correction = Float32(1 / (1 - Float64(BETA1) ** step))
        var v_correction = Float32(1 / (1 - Float64(BETA2) ** step))
        for i in range(self.params.size):
            var param = self.params.all[i]
            var grad = self.grads.all[i]
            var m = BETA1 * self.m[i] + (1 - BETA1) * grad
            var v = BETA2 * self.v[i] + (1 - BETA2) * grad * grad
            self.m[i] = m
            self.v[i] = v
            var direction = m * m_correction / (sqrt(v * v_correction) + EPS) + weight_decay * param
            self.params.all[i] = param - learning_rate * direction


# ----------------------------------------------------------------------------------------------------------------------
# 4. Files

comptime HEADER_BYTES = 1024
"""Every llm.c file begins with 256 int32: a magic number, a version, sizes."""


def read_header(path: String, what: String, magic: Int32, version: Int32, remedy: String) raises -> List[Int32]:
    """Reads the 256 numbers that begin an llm.c file; raises unless magic number and version are the expected ones."""
    if not isfile(path):
        raise Error(t"{what} {path}: no such file; {remedy}")
    var header = List[Int32](length=HEADER_BYTES // 4, fill=0)
    var bytes: Int
    with open(path, "r") as file:
        bytes = file.read(Span(header))
    if bytes < HEADER_BYTES:
        raise Error(t"{what} {path}: expected a header of {HEADER_BYTES} bytes, found a file of {bytes}; {remedy}")
    if header[0] != magic or header[1] != version:
        raise Error(
            t"{what} {path}: expected magic number {magic}, version {version}, found {header[0]}, {header[1]};"
            t" another kind of file: {remedy}"
        )
    return header^


def check_size(path: String, what: String, expected: Int, remedy: String) raises:
    """Raises if the file does not have the size that its header promises."""
    var found = Int(stat(path).st_size)
    if found != expected:
        raise Error(t"{what} {path}: expected {expected} bytes by its header, found {found}: damaged; {remedy}")


comptime CHECKPOINT_REMEDY = "write an fp32 checkpoint with `python -m llm_mojo weights gpt2`"
comptime LARGEST_TOKENIZER = 1 << 28
comptime LARGEST_MODEL = 1e13
comptime DATA_REMEDY = "write it with `python prepro_tinyshakespeare.py`"


def read_checkpoint_header(path: String) raises -> GPT2Config:
    """Reads the sizes from an llm.c checkpoint; raises unless it is in fp32, sensible and complete."""
    var header = read_header(path, "checkpoint", 20240326, 3, CHECKPOINT_REMEDY)
    var config = GPT2Config(
        Int(header[2]), Int(header[3]), Int(header[4]), Int(header[5]), Int(header[6]), Int(header[7])
    )
    var smallest = min(config.max_seq_len, config.vocab_size, config.num_layers, config.num_heads, config.channels)
    if smallest < 1 or config.padded_vocab_size < config.vocab_size or config.channels % config.num_heads != 0:
        raise Error(
            t"checkpoint {path}: no GPT-2 has maxT={header[2]}, V={header[3]}, L={header[4]}, NH={header[5]},"
            t" C={header[6]}, Vp={header[7]}; {CHECKPOINT_REMEDY}"
        )
    # Sizes that are no GPT-2's would overflow when they are multiplied.
    var C = Float64(config.channels)
    var parameters = C * (Float64(config.padded_vocab_size) + 12 * Float64(config.num_layers) * C)
    if parameters > LARGEST_MODEL:
        raise Error(
            t"checkpoint {path}: its header promises {Int64(min(parameters, 1e18))} parameters, more than any GPT-2:"
            t" damaged; {CHECKPOINT_REMEDY}"
        )
    check_size(path, "checkpoint", HEADER_BYTES + 4 * config.num_parameters(), CHECKPOINT_REMEDY)
    return config^


struct MersenneTwister(Movable):
    """The random numbers of mt19937 (Matsumoto and Nishimura, 1998), which PyTorch and llm.c use as well."""

    var state: List[UInt32]
    var position: Int

    def __init__(out self, seed: UInt32):
        self.state = [seed]
        for i in range(1, 624):
            var previous = self.state[i - 1]
            self.state.append(1812433253 * (previous ^ (previous >> 30)) + UInt32(i))
        self.position = 624

    def next(mut self) -> UInt32:
        """Returns 32 random bits."""
        if self.position == 624:
            for i in range(624):
                var joined = (self.state[i] & 0x80000000) | (self.state[(i + 1) % 624] & 0x7FFFFFFF)
                var twisted = self.state[(i + 397) % 624] ^ (joined >> 1)
                self.state[i] = twisted ^ 0x9908B0DF if joined & 1 else twisted
            self.position = 0
        var y = self.state[self.position]
        self.position += 1
        y ^= y >> 11
        y ^= (y << 7) & 0x9D2C5680
        y ^= (y << 15) & 0xEFC60000
        return y ^ (y >> 18)

    def shuffle(mut self, mut items: List[Int]):
        """Brings the items into a random order: each, from the last on, changes places with one not after it."""
        for i in range(len(items) - 1, 0, -1):
            var j = Int(self.next()) % (i + 1)
            items.swap_elements(i, j)


def glob(pattern: String) raises -> List[String]:
    """Lists the files that match, in order. After the last / there may be `*` (any characters) and `?` (one)."""
    var slash = pattern.rfind("/")
    var folder = String(pattern[byte = 0 : slash + 1])
    var last = String(pattern[byte = slash + 1 :])
    var paths: List[String] = []
    if folder == "" or isdir(folder):
        for ref name in listdir(folder if folder else "."):
            if matches(name.as_bytes(), last.as_bytes()) and isfile(folder + name):
                paths.append(folder + name)
    sort(paths)
    return paths^


def matches(name: Span[UInt8, _], pattern: Span[UInt8, _]) -> Bool:
    """Tells if the name matches a pattern with `*` and `?`."""
    if len(pattern) == 0:
        return len(name) == 0
    if pattern[0] == UInt8(ord("*")):
        return matches(name, pattern[1:]) or (len(name) > 0 and matches(name[1:], pattern))
    return len(name) > 0 and (pattern[0] == name[0] or pattern[0] == UInt8(ord("?"))) and matches(name[1:], pattern[1:])


struct DataLoader(Movable):
    """Batches of B*T tokens from the shards that match a pattern, epoch after epoch.

    A sample is B*T tokens in a row plus one, the target of the last; samples begin B*T tokens apart, what remains at
    the end of a shard is not used. With `shuffle`, shards and the samples inside each shard come in random order, as in
    llm.c; without, in file order.
    """

    var B: Int
    var T: Int
    var vocab_size: Int
    var shuffle: Bool
    var random: MersenneTwister
    var shards: List[String]
    var shard_sizes: List[Int]  # in tokens
    var shard_order: List[Int]
    var sample_order: List[Int]
    var shard: Int  # position in shard_order
    var sample: Int  # position in sample_order
    var tokens: List[Int]  # the batch, (B,T)
    var targets: List[Int]  # the tokens that follow those of the batch, (B,T)

    def __init__(out self, pattern: String, B: Int, T: Int, vocab_size: Int, shuffle: Bool) raises:
        """Goes to the first sample; raises if there is no shard, or one is damaged or shorter than a sample."""
        self.B = B
        self.T = T
        self.vocab_size = vocab_size
        self.shuffle = shuffle
        self.random = MersenneTwister(42)
        self.shards = glob(pattern)
        if len(self.shards) == 0:
            raise Error(t"data {pattern}: no such file; {DATA_REMEDY}")
        self.shard_sizes = []
        for ref path in self.shards:
            var size = Int(read_header(path, "data", 20240520, 1, DATA_REMEDY)[2])
            check_size(path, "data", HEADER_BYTES + 2 * size, DATA_REMEDY)
            if size < B * T + 1:
                raise Error(
                    t"data {path}: a batch of B={B}, T={T} takes {B * T + 1} tokens, found {size}; use smaller -b or -t"
                )
            self.shard_sizes.append(size)
        self.shard_order = List(range(len(self.shards)))
        self.sample_order = []
        self.shard = 0
        self.sample = 0
        self.tokens = List[Int](length=B * T, fill=0)
        self.targets = List[Int](length=B * T, fill=0)
        self.reset()

    def reset(mut self):
        """Begins an epoch."""
        if self.shuffle:
            self.random.shuffle(self.shard_order)
        self.begin_shard(0)

    def begin_shard(mut self, shard: Int):
        """Goes to the first sample of a shard, given by its position in the order."""
        self.shard = shard
        self.sample = 0
        var num_samples = (self.shard_sizes[self.shard_order[shard]] - 1) // (self.B * self.T)
        self.sample_order = List(range(num_samples))
        if self.shuffle:
            self.random.shuffle(self.sample_order)

    def next_batch(mut self) raises:
        """Fills `tokens` and `targets` from the next sample; raises at a token that the model does not have."""
        if self.sample == len(self.sample_order):
            if self.shard + 1 == len(self.shards):
                self.reset()
            else:
                self.begin_shard(self.shard + 1)
        var N = self.B * self.T
        var first = self.sample_order[self.sample] * N
        var path = self.shards[self.shard_order[self.shard]]
        var buffer = List[UInt16](length=N + 1, fill=0)
        with open(path, "r") as file:
            _ = file.seek(HEADER_BYTES + 2 * first)
            _ = file.read(Span(buffer))
        for i in range(N + 1):
            if Int(buffer[i]) >= self.vocab_size:
                raise Error(
                    t"data {path}: token {buffer[i]} at position {first + i}, but the model's vocabulary has"
                    t" {self.vocab_size}; use data and a checkpoint that were made with the same tokenizer"
                )
        for i in range(N):
            self.tokens[i] = Int(buffer[i])
            self.targets[i] = Int(buffer[i + 1])
        self.sample += 1


struct Tokenizer(Movable):
    """The bytes that each token stands for."""

    var pieces: List[List[UInt8]]
    var end_of_text: Int  # the token that separates documents

    def __init__(out self, path: String, vocab_size: Int) raises:
        """Reads an llm.c tokenizer file; raises if it is damaged or its end of text is no word of the model."""
        var header = read_header(path, "tokenizer", 20240328, 2, DATA_REMEDY)
        # -1 stands for none: texts of characters may do without, and then the first token takes its place.
        self.end_of_text = max(0, Int(header[3]))
        if self.end_of_text >= vocab_size:
            raise Error(
                t"tokenizer {path}: its end of text is token {self.end_of_text}, but the model's vocabulary has"
                t" {vocab_size}; use the --tokenizer that came with the model's data"
            )
        var size = Int(stat(path).st_size)
        if size > LARGEST_TOKENIZER:
            raise Error(t"tokenizer {path}: expected at most {LARGEST_TOKENIZER} bytes, found {size}; {DATA_REMEDY}")
        var bytes = List[UInt8](length=size, fill=0)
        with open(path, "r") as file:
            _ = file.read(Span(bytes))
        self.pieces = []
        var at = HEADER_BYTES
        for token in range(Int(header[2])):
            var end = at + 1 + Int(bytes[at]) if at < len(bytes) else at + 1
            if end > len(bytes):
                raise Error(
                    t"tokenizer {path}: expected {header[2]} tokens, found the end of the file in token {token}"
                )
            self.pieces.append(List(Span(bytes)[at + 1 : end]))
            at = end

    def print(self, token: Int) raises:
        """Prints a token, unless it is a single byte that is no character: one that controls, or a part of one."""
        if token >= len(self.pieces):
            say(String(t"<{token}>"))
            return
        ref piece = self.pieces[token]
        if len(piece) == 1:
            var byte = piece[0]
            var is_space = byte == 32 or (byte >= 9 and byte <= 13)
            if not is_space and (byte < 33 or byte > 126):
                return
        say(String(StringSlice(unsafe_from_utf8=Span(piece))))


# ----------------------------------------------------------------------------------------------------------------------
# 5. Sampling and training


struct Sampler(Movable):
    """Draws tokens by their probability, with the random numbers of xorshift64* as in llm.c."""

    var state: UInt64

    def __init__(out self, seed: UInt64):
        self.state = seed

    def next(mut self) -> Float32:
        """Returns a random number in [0, 1)."""
        self.state ^= self.state >> 12
        self.state ^= self.state << 25
        self.state ^= self.state >> 27
        var bits = (self.state * 0x2545F4914F6CDD1D) >> 32
        return Float32(bits >> 8) / 16777216

    def sample(mut self, probs: Floats, V: Int) -> Int:
        """Draws v with probability probs[v]: the first v at which their running sum exceeds a random number."""
        var coin = self.next()
        var sum = Float32(0)
        for v in range(V):
            sum += probs[v]
            if coin < sum:
                return v
        return V - 1


def generate(mut model: GPT2, tokenizer: Tokenizer, mut sampler: Sampler, length: Int) raises:
    """Prints text that the model makes up: `length` tokens, the first being end of text, which begins a document."""
    say("generating:\n---\n")
    var V = model.config.vocab_size
    var tokens: List[Int] = [tokenizer.end_of_text]
    for t in range(1, length):
        model.forward(tokens, 1, t)
        tokens.append(sampler.sample(model.acts.probs + (t - 1) * V, V))
        tokenizer.print(tokens[t])
    say("\n---\n")


def parse_options(arguments: Span[StaticString, _]) raises -> Dict[String, String]:
    """Returns all options by their long names, with llm.c's defaults or what the command line says; raises if wrong."""
    var known: List[Tuple[String, String, String]] = [
        ("-e", "--init", "gpt2_124M.bin"),
        ("-i", "--train-data", "data/tinyshakespeare/tiny_shakespeare_train.bin"),
        ("-j", "--val-data", "data/tinyshakespeare/tiny_shakespeare_val.bin"),
        ("-", "--tokenizer", "data/tinyshakespeare/tokenizer.bin"),
        ("-b", "--batch-size", "4"),
        ("-t", "--seq-len", "64"),
        ("-l", "--learning-rate", "1e-4"),
        ("-c", "--weight-decay", "0.0"),
        ("-x", "--max-steps", "40"),
        ("-v", "--val-every", "10"),
        ("-m", "--val-batches", "5"),
        ("-s", "--sample-every", "20"),
        ("-g", "--gen-len", "64"),
    ]
    var options = Dict[String, String]()
    for ref option in known:
        options[option[1]] = option[2]
    for i in range(1, len(arguments), 2):
        var flag = String(arguments[i])
        if flag == "-h" or flag == "--help":
            var help = String("Trains GPT-2 in plain loops. Options and their defaults:\n")
            for ref option in known:
                help += String(t"  {option[0]} {option[1]} {option[2]}\n")
            say_and_exit(help)
        if flag == "--version":
            say_and_exit(String(t"train_gpt2_basic (llm.mojo) {VERSION}\n"))
        var name = String()
        var default = String()
        for ref option in known:
            if flag == option[0] or flag == option[1]:
                name = option[1]
                default = option[2]
        if name == "":
            raise Error(t"option {flag}: unknown; --help lists the options")
        if i + 1 == len(arguments):
            raise Error(t"option {flag}: a value is missing")
        var value = String(arguments[i + 1])
        try:
            if default.is_ascii_digit():
                _ = Int(value)
            elif not default.endswith(".bin"):
                _ = Float64(value)
        except:
            raise Error(t"option {flag}: expected a number such as {default}, found {value}")
        options[name] = value
    return options^


def say(text: String) raises:
    """Prints a text; raises if it does not arrive, for example on a full disk. std's `print` would not tell."""
    if not say_on(1, text):
        raise Error(t"standard output: cannot write: {get_errno()}")


def say_and_exit(text: String):
    """Prints a text and ends the program: status 0, or 1 if the text does not arrive."""
    try:
        say(text)
    except error:
        _ = say_on(2, String(error) + "\n")
        exit(1)
    exit(0)


def say_on(stream: Int32, text: String) -> Bool:
    """Writes a text to standard output (1) or to standard error (2) and tells whether all of it has arrived.

    Control characters but tabs and newlines are left out: those of a file would move a terminal's cursor.
    """
    var shown = List[UInt8](capacity=text.byte_length())
    for byte in text.as_bytes():
        if byte >= 32 and byte != 127 or byte == 9 or byte == 10:
            shown.append(byte)
    var done = 0
    while done < len(shown):
        # C's `struct iovec`: where the bytes are, and how many.
        var rest = Array[Int, 2](fill=len(shown) - done)
        rest[0] = Int(shown.unsafe_ptr()) + done
        var count = external_call["writev", Int](stream, rest.unsafe_ptr(), Int32(1))
        if count <= 0:
            return False
        done += count
    return True


def open_closed_streams():
    """Opens those of the streams 0 to 2 that are closed on /dev/null: else the first file would take their number.

    Standard output is opened for reading, so that to print is still an error.
    """
    var null = String("/dev/null")
    for stream in range(3):
        if external_call["dup", Int32](Int32(stream)) < 0:
            var write_only = Int32(1 if stream != 1 else 0)
            _ = external_call["openat", Int32](Int32(-100), null.as_c_string_span().ptr(), write_only, Int32(0))


def decimals(x: Float64, places: Int) -> String:
    """Writes a number with a fixed number of decimals, as printf does."""
    if not abs(x) < 1e12:
        return String(x)
    var scale = 10**places
    var scaled = Int(round(abs(x) * Float64(scale)))
    var sign = "-" if x < 0 else ""
    return String(sign, scaled // scale, ".", String(scaled % scale).ascii_rjust(places, "0"))


def train(options: Dict[String, String]) raises:
    """Reads model and data, then trains with validation and samples in between."""
    var B = Int(options["--batch-size"])
    var T = Int(options["--seq-len"])
    var learning_rate = Float32(Float64(options["--learning-rate"]))
    var weight_decay = Float32(Float64(options["--weight-decay"]))
    var max_steps = Int(options["--max-steps"])
    var val_every = Int(options["--val-every"])
    var val_batches = Int(options["--val-batches"])
    var sample_every = Int(options["--sample-every"])
    var gen_len = min(Int(options["--gen-len"]), T)

    var path = options["--init"]
    var config = read_checkpoint_header(path)
    if B < 1 or T < 1 or T > config.max_seq_len:
        var maxT = config.max_seq_len
        raise Error(t"B={B}, T={T}: {path} takes at least one sequence of 1 to {maxT} tokens; change -b or -t")
    var V = config.vocab_size
    var train_loader = DataLoader(options["--train-data"], B, T, V, shuffle=True)
    var val_loader = DataLoader(options["--val-data"], B, T, V, shuffle=False)
    var tokenizer = Optional[Tokenizer]()
    if sample_every > 0:
        tokenizer = Tokenizer(options["--tokenizer"], V)
    say(
        String(
            t"GPT-2: {config.num_layers} layers, {config.num_heads} heads, {config.channels} channels, vocabulary"
            t" {V},\ncontext {config.max_seq_len}, {config.num_parameters()} parameters\n"
        )
    )
    var model = GPT2(path, config^, B, T)
    var sampler = Sampler(1337)

    for step in range(max_steps + 1):
        if val_every > 0 and step % val_every == 0:
            var val_loss = Float64(0)
            val_loader.reset()
            for _ in range(val_batches):
                val_loader.next_batch()
                model.forward(val_loader.tokens, B, T)
                val_loss += model.loss(val_loader.targets) / Float64(val_batches)
            say(String(t"val loss {decimals(val_loss, 6)}\n"))

        if sample_every > 0 and step > 0 and step % sample_every == 0:
            generate(model, tokenizer.value(), sampler, gen_len)

        if step < max_steps:
            var start = perf_counter_ns()
            train_loader.next_batch()
            model.forward(train_loader.tokens, B, T)
            var loss = model.loss(train_loader.targets)
            model.backward(train_loader.tokens, train_loader.targets, B, T)
            model.update(step + 1, learning_rate, weight_decay)
            var milliseconds = Float64(perf_counter_ns() - start) / 1e6
            say(String(t"step {step + 1}: train loss {decimals(loss, 6)} (took {decimals(milliseconds, 1)} ms)\n"))


def main():
    """Runs the program: status 0 when all went well, 1 when a file or a size was wrong, 2 for wrong options."""
    open_closed_streams()
    var status = 2
    try:
        var options = parse_options(argv())
        status = 1
        train(options)
    except error:
        _ = say_on(2, String(error) + "\n")
        exit(Int32(status))
