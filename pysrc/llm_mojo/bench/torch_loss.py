"""nanoGPT's recipe for its character model on PyTorch: random windows, AdamW with decay on matrices, cosine, clipping.

    python -m llm_mojo.bench.torch_loss --data FOLDER --out FOLDER --seed N [--compile]

The settings are those of presets/shakespeare-char.toml. Writes a log as the trainer does: a line of JSON for each step and
each validation, which is of the whole validation set.
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch

from llm_mojo import formats
from llm_mojo.bench.loss import recipe, vocabulary_size
from llm_mojo.bench.torch_step import GPT2
from llm_mojo.run_log import LOG

VALIDATION_BATCH = 64
"""Windows side by side in a validation, which is not timed."""


def initialize(model, num_layers):
    """GPT-2's: normal with 0.02, less for what adds to the residual stream; biases 0."""
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            scale = 1 / math.sqrt(2 * num_layers) if "proj" in name else 1
            torch.nn.init.normal_(parameter, std=0.02 * scale)
        elif name.endswith("bias"):
            torch.nn.init.zeros_(parameter)


def rate(step, settings):
    """The learning rate of a step, counted from 0."""
    peak, warm_up, steps = settings["learning-rate"], settings["warmup"], settings["max-steps"]
    if step < warm_up:
        return peak * (step + 1) / warm_up
    low = peak * settings["final-lr-fraction"]
    return low + 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up))) * (peak - low)


@torch.no_grad()
def validate(model, tokens, T):
    """The mean loss over the whole windows of the validation set, one behind the other."""
    count = (len(tokens) - 1) // T
    windows, targets = tokens[: count * T].view(count, T), tokens[1 : count * T + 1].view(count, T)
    total = 0.0
    for start in range(0, count, VALIDATION_BATCH):
        part = slice(start, start + VALIDATION_BATCH)
        total += model(windows[part], targets[part]).item() * len(windows[part])
    return total / count


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1337)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--val-every", type=int, default=50)
    args = parser.parse_args()
    settings = recipe()
    B, T, steps = settings["batch-size"], settings["seq-len"], settings["max-steps"]
    train, val = (
        torch.from_numpy(
            np.concatenate([formats.read_tokens(path) for path in sorted(args.data.glob(f"*_{split}.bin"))])
        ).long()
        for split in ("train", "val")
    )
    torch.manual_seed(args.seed)
    config = formats.ModelConfig(
        T, vocabulary_size(args.data), settings["n-layer"], settings["n-head"], settings["n-embd"]
    )
    model = GPT2(config)
    initialize(model, config.num_layers)
    decayed = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    others = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": decayed, "weight_decay": settings["weight-decay"]}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, settings["beta2"]), fused=True)
    step_model = torch.compile(model) if args.compile else model
    args.out.mkdir(parents=True, exist_ok=True)
    with open(args.out / LOG, "w", buffering=1) as log:

        def write(**record):
            log.write(json.dumps(record) + "\n")

        write(step=0, val_loss=validate(model, val, T))
        for step in range(steps):
            start = time.perf_counter()
            at = torch.randint(len(train) - T, (B, 1)) + torch.arange(T)
            loss = step_model(train[at], train[at + 1])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings["grad-clip"])
            for group in optimizer.param_groups:
                group["lr"] = rate(step, settings)
            optimizer.step()
            write(step=step + 1, loss=loss.item(), ms=1000 * (time.perf_counter() - start))
            if (step + 1) % args.val_every == 0 or step + 1 == steps:
                write(step=step + 1, val_loss=validate(model, val, T))


if __name__ == "__main__":
    main()
