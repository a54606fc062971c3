"""What a step of GPT-2 124M on two hosts waits for messages, beside the bytes over the speed of the link.

    python bench/bench_network.py [--rate 1gbit] [--passes 2] [--steps 4] [FLAGS OF THE TRAINER ..]

The hosts are network namespaces of this machine, joined by a link that is limited to the rate: for root, see
tests/two_hosts.py. MPICH starts one rank of one thread on each, over ssh.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import two_hosts  # noqa: E402
from llm_mojo import formats  # noqa: E402

B, T = 4, 64
V, L, C = 50257, 12, 768
GPT2_124M = formats.ModelConfig(1024, V, L, 12, C)
UNITS = {"mbit": 1e6, "gbit": 1e9}


def bits_a_second(rate):
    """What `tc` calls 1gbit or 200mbit."""
    match = re.fullmatch(r"(\d+)(mbit|gbit)", rate)
    if not match:
        raise SystemExit(f"--rate: expected a rate such as 1gbit or 200mbit, got {rate!r}")
    return int(match[1]) * UNITS[match[2]]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", default="1gbit")
    parser.add_argument("--passes", type=int, default=2, help=f"of {B} x {T} tokens, for each rank and step")
    parser.add_argument("--steps", type=int, default=4)
    args, more = parser.parse_known_args()
    rate = bits_a_second(args.rate)
    if not two_hosts.are_possible():
        raise SystemExit(f"bench_network: needs root and the commands {', '.join(two_hosts.NEEDED)}")
    two_hosts.RATE = args.rate
    with tempfile.TemporaryDirectory() as folder:
        log, size = train(Path(folder), args, more)
    waits = [entry["waited_ms"] / 1000 for entry in log]
    steps = [entry["ms"] / 1000 for entry in log]
    # Half of all gradients, then half of all parameters, each way.
    print(f"bytes over speed  {size / 2 * 2 * 8 / rate:6.2f} s a step")
    print(f"waited            {statistics.median(waits):6.2f} s (from {min(waits):.2f} to {max(waits):.2f})")
    computed = statistics.median(step - wait for step, wait in zip(steps, waits)) / args.passes
    # Nothing can leave before the output layer is through, nor before the first of the blocks is.
    blocks = L * (12 * C * C + 13 * C)
    hidden = 2 / 3 * computed * blocks / (blocks + V * C) * (L - 1) / L
    print(f"backward hides    {hidden:6.2f} s at most: that of {L - 1} blocks, by their share of two thirds of a pass")
    print(f"step              {statistics.median(steps):6.2f} s")


def train(folder, args, more):
    """The log's lines of steps, and the bytes of the model's parameters."""
    data = folder / "tokens.bin"
    formats.write_tokens(data, np.random.default_rng(1).integers(0, V, 1 << 20))
    tokens = 2 * args.passes * B * T
    flags = ["-i", data, "-j", data, "-e", "d12", "-b", B, "-t", T, "-d", tokens, "-x", args.steps, "-v", 0, "-s", 0]
    flags += ["--threads", 1, "-n", 0, "-nk", 0, "-o", folder / "run", *more]
    mpiexec = Path(sys.executable).with_name("mpiexec")
    with two_hosts.TwoHosts(folder) as hosts:
        words = [mpiexec, "-launcher", "ssh", "-launcher-exec", hosts.shell, "-hosts", "alpha,beta", "-ppn", 1, "-n", 2]
        command = hosts.command("alpha", [*words, ROOT / "build" / "train_gpt2", *flags])
        # Else MPI finds out that the hosts share a memory.
        result = subprocess.run(
            [str(word) for word in command],
            env=os.environ | {"UCX_TLS": "tcp,self"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
    if result.returncode != 0:
        raise SystemExit(result.stdout + result.stderr)
    lines = (folder / "run" / "log.jsonl").read_text().splitlines()
    log = [entry for entry in map(json.loads, lines) if "waited_ms" in entry]
    return log, 4 * formats.num_parameters(GPT2_124M)


if __name__ == "__main__":
    main()
