"""Who takes part: each trains the same checkpoint on the same tokens and prints a line with loss and time per step."""

import importlib.util
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass

from llm_mojo.bench.machine import machine
from llm_mojo.bench.workshop import Command, Missing

STEPS = 1000
"""More steps than the bench ever waits for."""
PROMPT = 1023
"""Tokens of the prompt that generators read: one follows, and GPT-2's context is full."""
TORCH_WARM_UP = 3
"""Until its allocator has all the memory that a step needs."""
KEEP_MEMORY = {
    "GLIBC_TUNABLES": ":".join(
        f"glibc.malloc.{name}={value}"
        for name, value in {"mmap_max": 0, "trim_threshold": 1 << 36, "top_pad": 1 << 28, "hugetlb": 1}.items()
    )
}
"""The C library keeps freed memory and takes huge pages. By default, PyTorch's large tensors are given back to the
system when they are freed, and the next step touches all their pages for the first time again."""
MAX_LINALG = {"llm/cpu/gemm/gemm.mojo": "bench/max_linalg/gemm.mojo"}
"""What takes the place of what in the step that has MAX's matrix products."""


@dataclass(frozen=True)
class Contestant:
    """One row of the tables."""

    name: str
    label: str
    command: Callable
    """command(workshop, size) builds what is needed and returns a Command, or raises Missing."""
    precision: str = "fp32"
    flags: str = ""
    """How it is built or run, as far as that decides its speed."""
    ours: bool = False
    """Whether it is our product: `compare` watches these for regressions."""
    quick: bool = True
    """Whether `--quick` includes it."""
    every: int = 1
    """It takes its turn in one round of so many."""
    warm_up: int = 1
    """Steps of a process that do not count."""
    steady: bool = True
    """Whether two runs should agree on it."""
    reports_start: bool = True
    """Whether its time to the first step says something: not if it validates before."""


def _data_flags(workshop, size):
    shard = workshop.shard(size)
    flags = ["-e", workshop.checkpoint(size), "-i", shard, "-j", shard, "-b", size.B, "-t", size.T]
    return [*flags, "-v", 0, "-x", STEPS]


def train_gpt2(workshop, size):
    return Command([workshop.mojo("train_gpt2.mojo"), *_data_flags(workshop, size), "-s", 0])


def train_gpt2_bf16(workshop, size):
    return Command([workshop.mojo("train_gpt2.mojo"), *_data_flags(workshop, size), "-s", 0, "--dtype", "bf16"])


def with_max_linalg(workshop, size):
    if not importlib.util.find_spec("max"):
        raise Missing("MAX is not installed: pip install -e '.[bench]'")
    return Command([workshop.mojo("train_gpt2.mojo", MAX_LINALG), *_data_flags(workshop, size), "-s", 0])


def train_gpt2_basic(workshop, size):
    return Command([workshop.mojo("train_gpt2_basic.mojo"), *_data_flags(workshop, size), "-s", 0])


def c_one_thread(workshop, size):
    return Command([workshop.c("train_gpt2_c"), *_data_flags(workshop, size)])


def c_openmp(workshop, size):
    return Command([workshop.c("train_gpt2_omp", "-fopenmp"), *_data_flags(workshop, size)])


def llmc(workshop, size):
    if not workshop.llmc:
        raise Missing("not given; build it elsewhere and point --llmc at its folder")
    program = (workshop.llmc / "train_gpt2").resolve()
    if not program.exists():
        raise Missing(f"{program} does not exist; build it there: make train_gpt2")
    if size.name != "124m":
        raise Missing("its program has GPT-2 124M, B=4 and T=64 built in")
    if not shutil.which("stdbuf"):
        raise Missing("it writes to a pipe only with the help of stdbuf, which is not there")
    folder = workshop.folder / "llmc"
    data = folder / "dev" / "data" / "tinyshakespeare"
    data.mkdir(parents=True, exist_ok=True)
    links = {folder / "gpt2_124M.bin": workshop.checkpoint(size)}
    links |= {data / f"tiny_shakespeare_{split}.bin": workshop.shard(size) for split in ("train", "val")}
    for link, target in links.items():
        link.unlink(missing_ok=True)
        link.symlink_to(target)
    return Command(["stdbuf", "-oL", program], cwd=folder)


def _expect_bf16():
    """PyTorch's bf16 products are plain loops in one thread where the processor has none of its own."""
    if not {"avx512_bf16", "amx_bf16"} & {*machine()["vectors"]}:
        raise Missing("without AVX512_BF16 or AMX a step of PyTorch's in bf16 takes minutes")


def _torch(name, label, compiled=False, bf16=False, default_malloc=False, quick=False):
    """One of PyTorch's contestants."""

    def command(workshop, size):
        if not importlib.util.find_spec("torch"):
            raise Missing("PyTorch is not installed: pip install -e '.[bench]'")
        if default_malloc and size.name != "124m":
            raise Missing("timed at B=4, T=64 only, to show what the default costs")
        if bf16:
            _expect_bf16()
        argv = [sys.executable, "-m", "llm_mojo.bench.torch_step", "-x", STEPS]
        argv += ["--init", workshop.checkpoint(size), "--data", workshop.shard(size), "-b", size.B, "-t", size.T]
        argv += ["--compile"] * compiled + ["--bf16"] * bf16
        environment = {"TORCHINDUCTOR_CACHE_DIR": str(workshop.compiled)}
        return Command(argv, environment=environment if default_malloc else environment | KEEP_MEMORY)

    used = {"torch.compile": compiled, "autocast": bf16, "the C library's default allocation": default_malloc}
    return Contestant(
        name,
        label,
        command,
        precision="bf16" if bf16 else "fp32",
        flags=", ".join(what for what, whether in used.items() if whether),
        quick=quick,
        every=2 if default_malloc else 1,
        warm_up=TORCH_WARM_UP,
        steady=not default_malloc,
    )


GCC = "gcc -Ofast -march=native"

# In the order of their turns. One thread is slow and steady, and seen less often.
CONTESTANTS = [
    Contestant("mojo", "train_gpt2.mojo", train_gpt2, ours=True),
    Contestant("mojo-bf16", "train_gpt2.mojo, bf16", train_gpt2_bf16, "bf16", "--dtype bf16", ours=True),
    Contestant("max", "train_gpt2.mojo on MAX's matmul", with_max_linalg),
    _torch("torch", "PyTorch", quick=True),
    _torch("torch-bf16", "PyTorch, bf16", bf16=True, quick=True),
    _torch("torch-compile", "PyTorch, compiled", compiled=True),
    _torch("torch-compile-bf16", "PyTorch, compiled, bf16", compiled=True, bf16=True),
    _torch("torch-malloc", "PyTorch, default malloc", default_malloc=True),
    _torch("torch-malloc-bf16", "PyTorch, bf16, default malloc", bf16=True, default_malloc=True),
    Contestant("llm.c", "llm.c, OpenMP", llmc, flags="as built", reports_start=False),
    Contestant("c-omp", "C, OpenMP", c_openmp, flags=f"{GCC} -fopenmp"),
    Contestant("c", "C, one thread", c_one_thread, flags=GCC, every=2),
    Contestant("basic", "train_gpt2_basic.mojo, one thread", train_gpt2_basic, ours=True, every=2),
]


# ----- generation: programs that print {"prompt": tokens/s, "continue": tokens/s, "tokens": [...]} for each round


def generate_mojo(workshop, size, *flags):
    init = ["--init", workshop.checkpoint(size), "--prompt", PROMPT, "--rounds", STEPS, "--json"]
    return Command([workshop.mojo("bench/bench_generate.mojo"), *init, *flags])


def generate_mojo_bf16(workshop, size):
    return generate_mojo(workshop, size, "--dtype", "bf16")


def generate_transformers(workshop, size, *flags):
    for package in ("torch", "transformers"):
        if not importlib.util.find_spec(package):
            raise Missing(f"{package} is not installed: pip install -e '.[bench]'")
    init = ["--init", workshop.checkpoint(size), "--prompt", PROMPT, "--rounds", STEPS]
    return Command([sys.executable, "-m", "llm_mojo.bench.torch_generate", *init, *flags], environment=KEEP_MEMORY)


def generate_transformers_bf16(workshop, size):
    _expect_bf16()
    return generate_transformers(workshop, size, "--bf16")


GENERATORS = [
    Contestant("mojo", "llm.mojo", generate_mojo, ours=True),
    Contestant("mojo-bf16", "llm.mojo, bf16", generate_mojo_bf16, "bf16", ours=True),
    Contestant("transformers", "transformers", generate_transformers),
    Contestant("transformers-bf16", "transformers, bf16", generate_transformers_bf16, "bf16"),
]
