"""Programs for 64-bit ARM, built and run on an x86-64 machine: Debian's cross linker and qemu, the compiler's libraries.

What is tested so is what the instructions compute, not how fast.
"""

import fcntl
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version

from mojo_programs import ROOT

TARGET = "aarch64"
# Neoverse N1: 128-bit NEON without bfloat16, what every 64-bit ARM server of the last years and a Raspberry Pi 5 have.
COMPILER_FLAGS = ["--target-triple", "aarch64-unknown-linux-gnu", "--target-cpu", "neoverse-n1", "--emit", "object"]
LINKER = "aarch64-linux-gnu-gcc"
EMULATOR = "qemu-aarch64"
SYSTEM = "/usr/aarch64-linux-gnu"
PACKAGES = "gcc-aarch64-linux-gnu libc6-arm64-cross libstdc++6-arm64-cross qemu-user"
LIBRARIES = ["KGENCompilerRTShared", "MSupportGlobals", "AsyncRTRuntimeGlobals"]


def libraries():
    """Returns the folder with the run-time libraries of the installed compiler's version for ARM, fetched once (80 MB)."""
    compiler = f"mojo-compiler=={version('mojo-compiler')}"
    folder = ROOT / "build" / compiler.replace("==", "-arm-")
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if all((folder / f"lib{name}.so").exists() for name in LIBRARIES):
            return folder
        fetch = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
        platform = ["--only-binary=:all:", "--platform", "manylinux_2_34_aarch64", "--dest", folder]
        subprocess.run([*fetch, *platform, compiler], check=True, stderr=subprocess.DEVNULL)
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as packed:
            for name in packed.namelist():
                if name.endswith(tuple(f"/lib/lib{library}.so" for library in LIBRARIES)):
                    with packed.open(name) as source, open(folder / name.rpartition("/")[2], "wb") as target:
                        shutil.copyfileobj(source, target)
        wheel.unlink()
    return folder


def link(compiled, binary):
    """Links an object file to `binary`.aarch64 and turns the file itself into the script that emulates that; (errors)."""
    folder = libraries()
    program = binary.with_name(f"{binary.name}.{TARGET}")
    fresh = compiled.with_name(f"{compiled.name}.{TARGET}")
    names = [f"-l{name}" for name in LIBRARIES]
    system = [f"{SYSTEM}/lib/libstdc++.so.6", "-lm", "-Wl,--allow-shlib-undefined"]
    # The linker knows a file by its beginning, whatever its name.
    command = [LINKER, compiled, f"-L{folder}", *names, *system, "-o", fresh]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        return result.stderr
    os.replace(fresh, program)
    # The libraries are named to the emulated program alone: they are not for the emulator itself.
    path = f"LD_LIBRARY_PATH={folder}:{SYSTEM}/lib"
    compiled.write_text(f'#!/bin/sh\nexec {EMULATOR} -L {SYSTEM} -E "{path}" "{program}" "$@"\n')
    compiled.chmod(0o755)
    return ""


def main():
    """Says what this machine lacks before anything is built."""
    absent = [tool for tool in (LINKER, EMULATOR) if not shutil.which(tool)]
    if absent:
        sys.exit(f"make: no {' and no '.join(absent)}; on Debian and Ubuntu: sudo apt install {PACKAGES}")
    libraries()


if __name__ == "__main__":
    main()
