"""Makes the wheel: the Python package, and programs and extension compiled for two kinds of x86-64 processors.

One wheel is for every Python from 3.10 to 3.13: programs need none, and the extension opens Python's library when it is loaded.
Nothing of the package mojo-compiler is in it: what is compiled finds its run-time libraries beside itself in site-packages.
"""

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from llm_mojo import Error, compiler, native, processor

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "wheel"
# As Python's libraries say it: the wheel of mojo-compiler has the same, and the C library that programs are linked with allows it.
PLATFORM = "manylinux_2_34_x86_64"
NEWEST_GLIBC = (2, 34)
OPTIONS = {
    "x86-64-v4": ["--target-cpu", "x86-64-v4", "--target-features", "+avx512bf16"],
    "x86-64-v3": ["--target-cpu", "x86-64-v3"],
}
INSTEAD = {
    "x86-64-v4": "the one in ../x86-64-v3 beside it needs AVX2 and FMA only, and the command llm-mojo chooses by itself",
    "x86-64-v3": f"there is none for others than {processor.SUPPORTED}; a source checkout builds for the processor that is there",
}
# site-packages/llm_mojo/compiled/<build>/<program> and site-packages/modular/lib.
LIBRARIES = "$ORIGIN/../../../modular/lib"
SETUP = f"""\
from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel


class Compiled(Distribution):
    def has_ext_modules(self):
        return True


class ForAnyPython(bdist_wheel):
    def get_tag(self):
        return "py3", "none", "{PLATFORM}"


setup(distclass=Compiled, cmdclass={{"bdist_wheel": ForAnyPython}}, package_data={{"llm_mojo": ["compiled/*/*", "serve/page/*"]}})
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder for the wheel")
    try:
        print(f"wrote {build_wheel(parser.parse_args().out)}")
    except Error as error:
        sys.exit(f"wheel: {error}")


def build_wheel(out: Path) -> Path:
    """Compiles what has changed, and puts the wheel into `out`. Raises Error where something cannot be built."""
    names = [*native.PROGRAMS, *([native.EXTENSION] if (ROOT / native.EXTENSION_SOURCE).exists() else [])]
    jobs = [(build, name) for build in OPTIONS for name in names]
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda job: compiled(*job), jobs))
    stage = WORK / "stage"
    shutil.rmtree(stage, ignore_errors=True)
    shutil.copytree(
        ROOT / "pysrc" / "llm_mojo", stage / "pysrc" / "llm_mojo", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, stage / name)
    (stage / "setup.py").write_text(SETUP)
    place = stage / "pysrc" / "llm_mojo" / "compiled"
    shutil.copytree(ROOT / "presets", place / "presets")
    for (build, name), result in zip(jobs, results):
        (place / build).mkdir(exist_ok=True)
        make_portable(result, place / build / name)
    return pack(stage, out)


def compiled(build: str, name: str) -> Path:
    """A program or the extension for one kind of processor."""
    result = WORK / build / name
    if name == native.EXTENSION:
        return compiler.build(ROOT, ROOT / native.EXTENSION_SOURCE, result, [*OPTIONS[build], "--emit", "shared-lib"])
    link = ["-Xlinker", f"{guard(build)}", "-Xlinker", "-init=llm_mojo_guard"]
    return compiler.build(ROOT, ROOT / f"{name}.mojo", result, [*OPTIONS[build], *link])


def guard(build: str) -> Path:
    """The object that ends a program where the processor lacks something; itself for any x86-64."""
    needed = " ".join(sorted(processor.BUILDS[build]))
    defines = {"NEEDED": needed, "BUILD": build, "INSTEAD": INSTEAD[build]}
    options = ["--emit", "object", "--target-cpu", "x86-64"]
    options += [word for name, value in defines.items() for word in ("-D", f"{name}={value}")]
    source = ROOT / "packaging" / "guard.mojo"
    # Its name is among the options of the programs, which so are linked again when it changes.
    version = hashlib.sha256(source.read_bytes() + " ".join(options).encode()).hexdigest()[:8]
    return compiler.build(ROOT, source, WORK / build / f"guard-{version}.o", options)


def make_portable(source: Path, to: Path) -> None:
    """Copies a binary; what it says of places on this machine is replaced: where libraries are, and sources were."""
    content = source.read_bytes()
    here = f"{ROOT}/".encode()
    # A path of the same length that leads nowhere else: ./././llm/x.mojo.
    content = content.replace(here, (b"./" * len(here))[: len(here) - 2 + len(here) % 2].ljust(len(here), b"/"))
    to.write_bytes(content)
    to.chmod(0o755)
    run("patchelf", "--set-rpath", LIBRARIES, to)
    needed = run("patchelf", "--print-needed", to).split()
    expected = {
        "libKGENCompilerRTShared.so",
        "libMSupportGlobals.so",
        "libAsyncRTRuntimeGlobals.so",
        "libc.so.6",
        "libm.so.6",
    }
    versions = {tuple(map(int, found.split(b"."))) for found in re.findall(rb"GLIBC_(2\.\d+)", content)}
    if not {*needed} <= expected or max(versions) > NEWEST_GLIBC:
        raise Error(
            f"{source}: expected to need {expected} and a C library of 2.34, found {needed} and {max(versions)}"
        )


def pack(stage: Path, out: Path) -> Path:
    """Has setuptools make the wheel."""
    out.mkdir(parents=True, exist_ok=True)
    code = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    name = run(sys.executable, "-c", code, out.resolve(), cwd=stage).split()[-1]
    return out / name


def run(*words, **options):
    """Runs a command and returns what it printed; raises Error with it if it fails."""
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, **options)
    if done.returncode:
        raise Error(f"{words[0]} failed with status {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
