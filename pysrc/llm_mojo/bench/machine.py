"""What the bench ran on and with: so that figures are compared with their like."""

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from llm_mojo.bench.workshop import ROOT


def machine():
    """The processor, the cores that may be used, the memory."""
    fields: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    flags = fields.get("flags", "").split()
    vectors = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags]
    return {
        "cpu": fields.get("model name", platform.machine()),
        "family": f"{fields.get('cpu family', '?')}/{fields.get('model', '?')}",
        "vectors": vectors,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
    }


def short_name(machine):
    """A name for files: amd-epyc-2-cores."""
    words = re.sub(r"\([^)]*\)|@.*|\b(CPU|Processor)\b", " ", machine["cpu"])
    return "-".join(re.findall(r"[a-z0-9]+", words.lower())) + f"-{machine['cores']}-cores"


def versions():
    """The versions of what builds and runs the contestants; null for what is not there."""
    packages = ("mojo-compiler", "max-core", "torch", "transformers", "numpy")
    return {
        "python": platform.python_version(),
        "gcc": _first_line("gcc", "--version"),
        "mojo": _first_line(shutil.which("mojo") or Path(sys.executable).with_name("mojo"), "--version"),
    } | {package: _package(package) for package in packages}


def commit():
    """The commit of the checkout, with a + if programs have been changed since; null outside of git."""
    head = _first_line("git", "-C", ROOT, "rev-parse", "--short=12", "HEAD")
    if head and _first_line("git", "-C", ROOT, "status", "--porcelain", "-uno", "--", "pysrc", "*.mojo", "*.c"):
        head += "+"
    return head


def _first_line(*command):
    try:
        output = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return output.splitlines()[0].strip() if output.strip() else None


def _package(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


class Load:
    """What the processors do from now on."""

    def __init__(self):
        self._total, self._busy = _ticks()

    def others(self, own_s=0.0):
        """The share of the processors' time since then that went to others than a program that took `own_s` seconds."""
        total, busy = _ticks()
        elapsed = max(1, total - self._total)
        return round(max(0.0, busy - self._busy - own_s * os.sysconf("SC_CLK_TCK")) / elapsed, 3)


def wait_for_quiet(limit_s, busy=0.1):
    """Waits, at most so long, until others take less than a share of the processors; returns seconds and share."""
    began = time.monotonic()
    while True:
        load = Load()
        time.sleep(0.2)
        share, waited = load.others(), time.monotonic() - began
        if share < busy or waited >= limit_s:
            return waited, share


def _ticks():
    """All ticks of all processors so far, and those not idle: work, and what the hypervisor gave to others."""
    with open("/proc/stat") as file:
        ticks = [int(word) for word in file.readline().split()[1:9]]
    idle = ticks[3] + ticks[4]
    return sum(ticks), sum(ticks) - idle
