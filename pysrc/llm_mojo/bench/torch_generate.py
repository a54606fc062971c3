"""transformers as a contestant of the bench: reads a prompt and continues it, greedily; prints a JSON object a round.

python -m llm_mojo.bench.torch_generate --init FILE [--bf16] [--prompt 1023] [--tokens 128] [--rounds 3]
"""

import argparse
import json
import time
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from llm_mojo import formats

SHORT = 16
"""Tokens of the prompt that is continued."""
WARM_UP = 4
"""Tokens that are written before a round is timed."""
LINEARS = {"qkv": "attn.c_attn", "attproj": "attn.c_proj", "fc": "mlp.c_fc", "fcproj": "mlp.c_proj"}


def load(path):
    """A GPT2LMHeadModel with the weights of an llm.c checkpoint."""
    config, tensors = formats.read_checkpoint(path)
    sizes = dict(n_layer=config.num_layers, n_head=config.num_heads, n_embd=config.channels)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=config.vocab_size, n_positions=config.max_seq_len, **sizes))
    state = {"wte.weight": tensors["wte"][: config.vocab_size], "wpe.weight": tensors["wpe"]}
    state |= {"ln_f.weight": tensors["lnfw"], "ln_f.bias": tensors["lnfb"]}
    for l in range(config.num_layers):
        for name in ("ln1", "ln2"):
            state[f"h.{l}.ln_{name[-1]}.weight"] = tensors[f"{name}w"][l]
            state[f"h.{l}.ln_{name[-1]}.bias"] = tensors[f"{name}b"][l]
        for name, theirs in LINEARS.items():
            # Theirs are stored (in, out).
            state[f"h.{l}.{theirs}.weight"] = tensors[f"{name}w"][l].T
            state[f"h.{l}.{theirs}.bias"] = tensors[f"{name}b"][l]
    model.transformer.load_state_dict({name: torch.tensor(x.copy()) for name, x in state.items()}, strict=False)
    return model.eval()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--init", type=Path, required=True)
    parser.add_argument("--prompt", type=int, default=1023)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bf16", action="store_true")
    args = parser.parse_args()
    model = load(args.init)
    if args.bf16:
        model = model.to(torch.bfloat16)

    def seconds(prompt, count):
        """Time for a prompt and so many tokens, and the tokens."""
        tokens = torch.tensor([[i * 7919 % model.config.vocab_size for i in range(prompt)]])
        start = time.perf_counter()
        out = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            do_sample=False,
            min_new_tokens=count,
            max_new_tokens=count,
            eos_token_id=None,
            pad_token_id=0,
        )
        return time.perf_counter() - start, out[0, prompt:].tolist()

    for _ in range(args.rounds):
        # Not timed: the first touches memory.
        seconds(SHORT, WARM_UP)
        read, _ = seconds(args.prompt, 1)
        begun, _ = seconds(SHORT, 1)
        whole, tokens = seconds(SHORT, args.tokens + 1)
        speeds = {"prompt": round(args.prompt / read, 3), "continue": round(args.tokens / (whole - begun), 3)}
        print(json.dumps(speeds | {"tokens": tokens}), flush=True)


if __name__ == "__main__":
    main()
