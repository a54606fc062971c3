"""Where the bench builds programs and keeps what it trains: build/bench of the checkout."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from llm_mojo import Error, formats

ROOT = Path(__file__).resolve().parents[3]


class Missing(Exception):
    """Why a contestant cannot take part; the bench names it with this reason and goes on."""


@dataclass(frozen=True)
class Command:
    """A program with its arguments."""

    argv: list
    cwd: Path | None = None
    environment: dict = field(default_factory=dict)


@dataclass
class Workshop:
    """The folder, and what the user has pointed the bench at."""

    folder: Path = ROOT / "build" / "bench"
    llmc: Path | None = None

    def __post_init__(self):
        if not (ROOT / "bench" / "train_gpt2.c").exists():
            raise Error(f"bench: {ROOT} is no checkout of llm.mojo; run it in one, installed with pip install -e .")
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def compiled(self):
        """Where torch.compile keeps what it has compiled."""
        return self.folder / "inductor"

    def mojo(self, source, replaced=None, options=()):
        """Builds a Mojo program of the tree, unless it is there and newer than its sources, and returns its path.

        `replaced` maps files of the tree to others of the tree that take their places in this build.
        """
        replaced = replaced or {}
        sources = [ROOT / source, *(ROOT / other for other in replaced.values()), *(ROOT / "llm").rglob("*.mojo")]
        if Path(source).parent.name == "bench":
            sources += [ROOT / "bench" / tool for tool in ("limits.mojo", "timing.mojo")]
        # Programs that differ have different names.
        suffix = "".join(f"-{Path(other).parent.name}" for other in replaced.values())
        suffix += "".join(f"-{word.strip('-').lower()}" for word in options)
        program = self.folder / (Path(source).stem + suffix)
        if _is_newer(program, sources):
            return program
        tree = ROOT
        if replaced:
            tree = self.folder / f"{program.name}-tree"
            shutil.rmtree(tree, ignore_errors=True)
            shutil.copytree(ROOT / "llm", tree / "llm")
            shutil.copy(ROOT / source, tree / source)
            for target, other in replaced.items():
                shutil.copy(ROOT / other, tree / target)
        compiler = shutil.which("mojo") or str(Path(sys.executable).with_name("mojo"))
        environment = {"MODULAR_TELEMETRY_ENABLED": "0", "PATH": f"{Path(compiler).parent}:{os.environ['PATH']}"}
        build([compiler, "build", "-I", tree, *options, tree / source, "-o", program], tree, environment)
        return program

    def c(self, name, *flags):
        """Builds bench/train_gpt2.c, unless it is there and newer than its source, and returns its path."""
        program = self.folder / name
        source = ROOT / "bench" / "train_gpt2.c"
        if not _is_newer(program, [source]):
            if not shutil.which("gcc"):
                raise Missing("there is no gcc")
            build(["gcc", "-Ofast", "-march=native", *flags, source, "-o", program, "-lm"])
        return program

    def checkpoint(self, size):
        """The random model of a size, the same in every run; drawn on first use."""
        path = self.folder / f"{size.name.split('-')[0]}.bin"
        if not path.exists():
            try:
                from llm_mojo.reference import init_tensors
            except ModuleNotFoundError as error:
                raise Error(
                    f"bench: drawing weights needs {error.name}; install it: pip install -e '.[bench]'"
                ) from error
            formats.write_checkpoint(path, size.config, init_tensors(size.config))
        return path

    def shard(self, size):
        """One batch of random tokens with its targets: every program takes it at every step."""
        path = self.folder / f"{size.name}-tokens.bin"
        tokens = np.random.default_rng(0).integers(size.config.vocab_size, size=size.tokens + 1, dtype=np.uint16)
        formats.write_tokens(path, tokens)
        return path


def build(argv, cwd=ROOT, environment=None):
    """Runs a compiler; raises Missing with what it said if it fails."""
    argv = [str(word) for word in argv]
    print(f"building {Path(argv[argv.index('-o') + 1]).name} ...", flush=True)
    result = subprocess.run(argv, cwd=cwd, env=os.environ | (environment or {}), capture_output=True, text=True)
    if result.returncode:
        errors = [line for line in result.stderr.splitlines() if "error" in line.lower()]
        raise Missing(f"it does not build: {(errors or ['no message'])[0].strip()[:200]}")


def _is_newer(program, sources):
    return program.exists() and program.stat().st_mtime > max(path.stat().st_mtime for path in sources)
