"""What this machine's processor has, and which of the builds in the wheel it runs.

The Linux kernel lists what programs may use (a virtual machine may mask what the silicon has), by its own names.
"""

from collections.abc import Mapping
from pathlib import Path

from llm_mojo import Error

CPUINFO = Path("/proc/cpuinfo")
# lzcnt is called abm there, sse3 pni.
_V3 = frozenset("abm avx avx2 bmi1 bmi2 cx16 f16c fma lahf_lm movbe pni popcnt sse4_1 sse4_2 ssse3 xsave".split())
_V4 = _V3 | frozenset("avx512f avx512bw avx512cd avx512dq avx512vl avx512_bf16".split())
# From the fastest: what each build of the wheel needs, and where that is found.
BUILDS: Mapping[str, frozenset[str]] = {"x86-64-v4": _V4, "x86-64-v3": _V3}
SUPPORTED = "x86-64 with AVX2 and FMA: Intel since Haswell (2013), AMD since Excavator (2015)"
# These say all that a compiler looks at.
_IDENTITY = "vendor_id", "cpu family", "model", "flags", "CPU implementer", "CPU part", "Features"


def _fields(path: Path) -> dict[str, str]:
    """The lines about the first of the processors; none where they cannot be read."""
    try:
        with open(path, errors="replace") as file:
            first = file.read().split("\n\n", 1)[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def features(path: Path = CPUINFO) -> frozenset[str]:
    """The kernel's names of what the processor has."""
    return frozenset(_fields(path).get("flags", "").split())


def identity(path: Path = CPUINFO) -> str:
    """Text that is another on a processor for which the compiler makes other code."""
    fields = _fields(path)
    return "; ".join(f"{name}: {fields[name]}" for name in _IDENTITY if name in fields)


def best_build(found: frozenset[str] | None = None) -> str:
    """The name of the fastest build that runs here. Raises Error where none does."""
    found = features() if found is None else found
    for name, needed in BUILDS.items():
        if needed <= found:
            return name
    missing = ", ".join(sorted(_V3 - found))
    raise Error(
        f"this processor lacks {missing}; the installed programs need {SUPPORTED}; elsewhere a source checkout builds"
        " them for the processor that is there"
    )
