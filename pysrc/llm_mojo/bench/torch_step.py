"""PyTorch as a contestant of the bench: trains a GPT-2 from an llm.c checkpoint on the first batch of a shard.

    python -m llm_mojo.bench.torch_step --init FILE --data FILE -b 4 -t 64 [--compile] [--bf16]

Written as its users write it: modules, scaled_dot_product_attention, fused AdamW. Prints a line per step.
"""

import argparse
import time
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

from llm_mojo import formats
from llm_mojo.reference import first_batch


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        C = config.channels
        self.num_heads = config.num_heads
        self.ln1, self.ln2 = nn.LayerNorm(C), nn.LayerNorm(C)
        self.qkv, self.attproj = nn.Linear(C, 3 * C), nn.Linear(C, C)
        self.fc, self.fcproj = nn.Linear(C, 4 * C), nn.Linear(4 * C, C)

    def forward(self, x):
        B, T, C = x.shape
        heads = B, T, self.num_heads, C // self.num_heads
        q, k, v = (part.view(heads).transpose(1, 2) for part in self.qkv(self.ln1(x)).split(C, dim=2))
        att = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attproj(att.transpose(1, 2).reshape(B, T, C))
        return x + self.fcproj(F.gelu(self.fc(self.ln2(x)), approximate="tanh"))


class GPT2(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.channels)
        self.wpe = nn.Embedding(config.max_seq_len, config.channels)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.lnf = nn.LayerNorm(config.channels)

    def forward(self, tokens, targets):
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.lnf(x), self.wte.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    @torch.no_grad()
    def load(self, tensors):
        """Takes over the 16 tensors of a checkpoint."""
        self.wte.weight.copy_(torch.from_numpy(tensors["wte"][: len(self.wte.weight)].copy()))
        self.wpe.weight.copy_(torch.from_numpy(tensors["wpe"].copy()))
        for l, block in enumerate(self.blocks):
            for name in ("ln1", "qkv", "attproj", "ln2", "fc", "fcproj"):
                module = getattr(block, name)
                module.weight.copy_(torch.from_numpy(tensors[f"{name}w"][l].copy()))
                module.bias.copy_(torch.from_numpy(tensors[f"{name}b"][l].copy()))
        self.lnf.weight.copy_(torch.from_numpy(tensors["lnfw"].copy()))
        self.lnf.bias.copy_(torch.from_numpy(tensors["lnfb"].copy()))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--init", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("-b", "--batch-size", type=int, default=4)
    parser.add_argument("-t", "--seq-len", type=int, default=64)
    parser.add_argument("-x", "--max-steps", type=int, default=40)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    args = parser.parse_args()
    config, tensors = formats.read_checkpoint(args.init)
    batch = first_batch(args.data, config, args.batch_size, args.seq_len)
    tokens, targets = (torch.from_numpy(part).long() for part in batch)
    model = GPT2(config)
    model.load(tensors)
    del tensors
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.999), weight_decay=0.0, fused=True)
    step_model = torch.compile(model) if args.compile else model
    for step in range(1, args.max_steps + 1):
        start = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.bf16):
            loss = step_model(tokens, targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        milliseconds = 1000 * (time.perf_counter() - start)
        print(f"step {step}: train loss {loss.item():.6f} (took {milliseconds:.1f} ms)", flush=True)


if __name__ == "__main__":
    main()
