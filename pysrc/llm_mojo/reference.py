"""GPT-2 in PyTorch, written for reading: the referee for everything that Mojo computes.

`python -m llm_mojo reference` writes what a test of another implementation needs: a checkpoint (when the weights are
drawn here), a debug state (inputs, logits, loss and all gradients of one batch) and the losses of ten AdamW steps on
that batch. A model is a dict of llm.c's 16 tensors, each holding all layers at once; linear weights are (out, in).
"""

import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from llm_mojo import Error, formats
from llm_mojo.reference_command import PRESETS

OPTIMIZER = dict(lr=1e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)  # what llm.c's test_gpt2.c uses
NUM_STEPS = 10


# The layers. Shapes are B batch, T time, C channels, NH heads, V vocabulary.


def embedding(tokens, wte, wpe):
    """out[b,t] = wte[tokens[b,t]] + wpe[t]. tokens (B,T), wte (V,C), wpe (maxT,C), out (B,T,C)."""
    return wte[tokens] + wpe[: tokens.shape[1]]


def layernorm(x, weight, bias):
    """out = (x - mean) * rstd * weight + bias over the last dimension, with eps 1e-5 inside rstd."""
    return F.layer_norm(x, weight.shape, weight, bias, eps=1e-5)


def linear(x, weight, bias=None):
    """out = x @ weight.T + bias. x (B,T,C), weight (OC,C), bias (OC) or none, out (B,T,OC)."""
    return F.linear(x, weight, bias)


def attention(qkv, num_heads):
    """Causal self-attention, softmax(q k^T / sqrt(C/NH)) v for each head. qkv (B,T,3C), out (B,T,C)."""
    B, T, C3 = qkv.shape
    C = C3 // 3
    q, k, v = (x.view(B, T, num_heads, C // num_heads).transpose(1, 2) for x in qkv.split(C, dim=2))  # (B,NH,T,C/NH)
    scores = q @ k.transpose(2, 3) / math.sqrt(C // num_heads)
    future = torch.ones(T, T, dtype=torch.bool).triu(1)
    return (scores.masked_fill(future, -math.inf).softmax(3) @ v).transpose(1, 2).reshape(B, T, C)


def gelu(x):
    """out = x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3)))."""
    return F.gelu(x, approximate="tanh")


def cross_entropy(logits, targets):
    """losses[b,t] = -log softmax(logits[b,t])[targets[b,t]]. logits (B,T,V), targets and losses (B,T)."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)


def forward(tensors, config, tokens, targets=None):
    """Returns logits (B,T,V) and the mean loss, which is None without targets.

    Padding rows of wte (V and up) take no part, so their gradient is zero.
    """
    p = tensors
    wte = p["wte"][: config.vocab_size]
    x = embedding(tokens, wte, p["wpe"])
    for l in range(config.num_layers):
        h = layernorm(x, p["ln1w"][l], p["ln1b"][l])
        h = attention(linear(h, p["qkvw"][l], p["qkvb"][l]), config.num_heads)
        x = x + linear(h, p["attprojw"][l], p["attprojb"][l])
        h = layernorm(x, p["ln2w"][l], p["ln2b"][l])
        h = gelu(linear(h, p["fcw"][l], p["fcb"][l]))
        x = x + linear(h, p["fcprojw"][l], p["fcprojb"][l])
    logits = linear(layernorm(x, p["lnfw"], p["lnfb"]), wte)
    return logits, None if targets is None else cross_entropy(logits, targets).mean()


@torch.no_grad()
def adamw(param, grad, m, v, step, lr, betas, eps, weight_decay):
    """One AdamW step in place, `step` counting from 1: m and v are running means of grad and grad^2.

    param -= lr * (m / (1 - beta1^step) / (sqrt(v / (1 - beta2^step)) + eps) + weight_decay * param)
    """
    beta1, beta2 = betas
    m.lerp_(grad, 1 - beta1)
    v.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    denominator = (v / (1 - beta2**step)).sqrt_().add_(eps)
    param.mul_(1 - lr * weight_decay).addcdiv_(m, denominator, value=-lr / (1 - beta1**step))


# Weights and batches to try it on.


def init_tensors(config, seed=0, spread=False):
    """Draws the 16 tensors at random, as a dict of fp32 numpy arrays.

    The default is GPT-2's initialisation: normal with deviation 0.02, projections into the residual stream smaller by
    sqrt(2L), biases 0, layernorms 1 and 0. `spread` is for tests: no tensor is constant and every gradient is well
    away from zero, so that no error can hide behind a zero bias or a uniform attention.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in formats.parameter_shapes(config).items():
        is_norm = name.startswith("ln")
        if name.endswith("b") or is_norm:
            mean, std = float(is_norm and name.endswith("w")), 0.1 if spread else 0.0
        else:
            mean, std = 0.0, shape[-1] ** -0.5 if spread else 0.02
            if name in ("attprojw", "fcprojw"):
                std /= math.sqrt(2 * config.num_layers)
        tensors[name] = torch.empty(shape).normal_(mean, std, generator=generator).numpy()
    tensors["wte"][config.vocab_size :] = 0
    return tensors


def random_batch(config, B, T, seed=0):
    """Draws random inputs and targets, int32 (B,T) each."""
    tokens = np.random.default_rng(seed).integers(config.vocab_size, size=B * T + 1, dtype=np.int32)
    return tokens[:-1].reshape(B, T), tokens[1:].reshape(B, T)


def first_batch(path, config, B, T):
    """Takes inputs and targets, int32 (B,T) each, from the first B*T+1 tokens of a shard."""
    tokens = formats.read_tokens(path)
    if len(tokens) < B * T + 1:
        raise Error(
            f"{path}: a batch of B={B}, T={T} takes {B * T + 1} tokens, found {len(tokens)}; "
            "use a smaller --batch-size or --seq-len"
        )
    tokens = tokens[: B * T + 1].astype(np.int32)
    if tokens.max() >= config.vocab_size:
        raise Error(
            f"{path}: token {tokens.max()} is outside the model's vocabulary of {config.vocab_size}; "
            "use the data that the model's tokenizer made"
        )
    return tokens[:-1].reshape(B, T), tokens[1:].reshape(B, T)


class Trainer:
    """Parameters as torch tensors, their gradients, and AdamW's two moments."""

    def __init__(self, config, tensors, dtype=torch.float32):
        self.config = config
        self.params = {name: torch.tensor(x, dtype=dtype, requires_grad=True) for name, x in tensors.items()}
        self.moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in self.params.items()}
        self.steps = 0

    def backward(self, tokens, targets):
        """Forward and backward: returns logits (B,T,V) and the mean loss, leaves gradients in `params[name].grad`."""
        for p in self.params.values():
            p.grad = None
        logits, loss = forward(self.params, self.config, torch.tensor(tokens).long(), torch.tensor(targets).long())
        loss.backward()
        return logits.detach(), loss.item()

    def update(self, **optimizer):
        """One AdamW step on every tensor."""
        self.steps += 1
        for name, p in self.params.items():
            adamw(p, p.grad, *self.moments[name], self.steps, **optimizer)


def write_reference(name, config, tensors, tokens, targets, dtype=torch.float32, report=lambda line: None):
    """Writes NAME_debug_state.bin and NAME_losses.txt: ten lines, the loss before each of ten AdamW steps.

    Everything is computed in `dtype` and rounded to fp32 in the debug state. Returns the losses.
    """
    trainer = Trainer(config, tensors, dtype)
    losses = []
    for step in range(NUM_STEPS):
        start = time.perf_counter()
        logits, loss = trainer.backward(tokens, targets)
        losses.append(loss)
        if step == 0:
            grads = {tensor: p.grad.float().numpy() for tensor, p in trainer.params.items()}
            formats.write_debug_state(
                f"{name}_debug_state.bin", tokens, targets, logits.float().numpy(), loss, grads, config
            )
            report(f"wrote {name}_debug_state.bin")
            del logits, grads
        if step < NUM_STEPS - 1:
            trainer.update(**OPTIMIZER)
        report(f"step {step + 1}: loss {loss:.9f} (took {1000 * (time.perf_counter() - start):.0f} ms)")
    Path(f"{name}_losses.txt").write_text("".join(f"{loss:.9f}\n" for loss in losses))
    report(f"wrote {name}_losses.txt")
    return losses


# The command.


def run(args):
    """Runs `python -m llm_mojo reference`."""
    dtype = getattr(torch, args.dtype)
    sizes = dict(n_layer=12, n_head=12, n_embd=768, block_size=1024, vocab_size=50257)
    if args.init:
        sizes["n_layer"], sizes["n_head"], sizes["n_embd"] = PRESETS[args.init]
    explicit = {option: getattr(args, option) for option in sizes if getattr(args, option) is not None}
    draw = bool(args.init or explicit)
    if draw:
        if args.checkpoint:
            raise Error("--checkpoint has weights and sizes already; leave out --init and the size options")
        sizes |= explicit
        config = formats.ModelConfig(
            max_seq_len=sizes["block_size"],
            vocab_size=sizes["vocab_size"],
            num_layers=sizes["n_layer"],
            num_heads=sizes["n_head"],
            channels=sizes["n_embd"],
        )
        if min(sizes.values()) < 1 or config.channels % config.num_heads:
            raise Error(f"no GPT-2 has the sizes {sizes}: all must be at least 1 and n_embd a multiple of n_head")
        name = args.name or "gpt2_124M"
        if Path(f"{name}.bin").exists() and not args.force:
            raise Error(
                f"{name}.bin exists; use --checkpoint {name}.bin to work on it, --name for another file, "
                "or --force to replace it"
            )
        tensors = init_tensors(config, args.seed, args.spread)
    else:
        checkpoint = Path(args.checkpoint or "gpt2_124M.bin")
        if not checkpoint.exists():
            raise Error(
                f"{checkpoint}: no such checkpoint; make one with `python -m llm_mojo weights gpt2`, "
                "or use random weights: --init d12"
            )
        config, tensors = formats.read_checkpoint(checkpoint)
        name = args.name or str(checkpoint.with_suffix(""))
    B, T = args.batch_size, args.seq_len
    if B < 1 or not 1 <= T <= config.max_seq_len:
        raise Error(f"B={B}, T={T}: this model takes one or more sequences of 1 to {config.max_seq_len} tokens")
    if args.data:
        tokens, targets = first_batch(args.data, config, B, T)
    else:
        tokens, targets = random_batch(config, B, T, args.seed)
    if draw:
        formats.write_checkpoint(f"{name}.bin", config, tensors)
        print(f"wrote {name}.bin")
    print(f"{config}, B={B}, T={T}, {args.dtype}, {args.data or 'random tokens'}")
    write_reference(name, config, tensors, tokens, targets, dtype, print)


# Inputs, outputs and gradients of single layers, for tests of other implementations.


def layer_goldens(folder, seed=0, B=2, T=5, C=12, NH=3, OC=7, V=19):
    """Writes inputs, outputs and gradients of every layer at these sizes, computed in float64 from fp32 inputs.

    FOLDER/LAYER_TENSOR.bin is the raw data (little-endian fp32, int32 for tokens), FOLDER/LAYER.txt names the sizes
    and settings, `name value` on each line. `dX` is the gradient of X, given the random gradient `dout` of the output;
    cross_entropy's is that of the mean loss.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator).double().requires_grad_()

    def integers(high, *shape):
        return torch.randint(high, shape, generator=generator)

    def save(layer, sizes, **arrays):
        (folder / f"{layer}.txt").write_text("".join(f"{key} {value}\n" for key, value in sizes.items()))
        for key, x in arrays.items():
            dtype = "<f4" if x.is_floating_point() else "<i4"
            x.detach().numpy().astype(dtype).tofile(folder / f"{layer}_{key}.bin")

    def save_layer(layer, sizes, function, **inputs):
        """Saves inputs, out = function(*inputs), dout and the gradient of each floating-point input."""
        out = function(*inputs.values())
        dout = normal(*out.shape)
        out.backward(dout)
        grads = {f"d{key}": x.grad for key, x in inputs.items() if x.is_floating_point()}
        save(layer, sizes, **inputs, out=out, dout=dout, **grads)

    BTC = dict(B=B, T=T, C=C)
    save_layer("layernorm", BTC, layernorm, inp=normal(B, T, C), weight=normal(C), bias=normal(C))
    save_layer("linear", BTC | dict(OC=OC), linear, inp=normal(B, T, C), weight=normal(OC, C), bias=normal(OC))
    save_layer("attention", BTC | dict(NH=NH), lambda qkv: attention(qkv, NH), inp=normal(B, T, 3 * C))
    save_layer("gelu", dict(N=B * T * C), gelu, inp=normal(B * T * C))
    save_layer("residual", dict(N=B * T * C), torch.add, inp1=normal(B * T * C), inp2=normal(B * T * C))
    maxT = T + 3
    inputs = dict(tokens=integers(V, B, T), wte=normal(V, C), wpe=normal(maxT, C))
    save_layer("embedding", BTC | dict(V=V, maxT=maxT), embedding, **inputs)

    logits, targets = normal(B, T, V), integers(V, B, T)
    losses = cross_entropy(logits, targets)
    losses.mean().backward()
    outputs = dict(probs=logits.softmax(2), losses=losses, dlogits=logits.grad)
    save("cross_entropy", dict(B=B, T=T, V=V), logits=logits, targets=targets, **outputs)

    N = B * T * C
    step, lr, betas, eps, weight_decay = 3, 0.01, (0.9, 0.95), 1e-8, 0.1
    settings = dict(N=N, step=step, lr=lr, beta1=betas[0], beta2=betas[1], eps=eps, weight_decay=weight_decay)
    param, grad, m, v = (normal(N).detach() for _ in range(4))
    v.abs_()
    before = dict(param=param.clone(), grad=grad, m=m.clone(), v=v.clone())
    adamw(param, grad, m, v, step, lr, betas, eps, weight_decay)
    save("adamw", settings, **before, param_out=param, m_out=m, v_out=v)

    x = normal(N)
    save("global_norm", dict(N=N), inp=x, out=x.norm().view(1))
