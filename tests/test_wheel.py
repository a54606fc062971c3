"""The wheel: installed where there is no compiler, it trains; on a processor that lacks something, its programs say so.

`pip` fetches what the wheel needs as always; PATH then has nothing but the environment's own bin.
"""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from llm_mojo import processor
from mojo_programs import ROOT

pytestmark = pytest.mark.long


def works(python):
    """Whether this is a Python that can make environments, and no place-holder for one."""
    return python and subprocess.run([python, "-c", "import venv, ensurepip"], capture_output=True).returncode == 0


PYTHONS = [*filter(works, (shutil.which(f"python3.{minor}") for minor in range(10, 14)))] or [sys.executable]
LARGEST_WHEEL = 15_000_000
LARGEST_ENVIRONMENT = 400_000_000


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'pysrc'}"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run([sys.executable, ROOT / "packaging" / "build_wheel.py", folder], check=True, env=environment)
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def unpacked(wheel):
    folder = wheel.parent / "unpacked"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
        for item in archive.infolist():
            (folder / item.filename).chmod(item.external_attr >> 16)
    return folder / "llm_mojo" / "compiled"


def binaries(folder):
    return [path for path in folder.glob("x86-64-*/*") if path.is_file()]


def test_what_is_in_it(wheel, unpacked):
    assert re.fullmatch(r"llm_mojo-[\d.]+-py3-none-manylinux_2_34_x86_64\.whl", wheel.name)
    assert wheel.stat().st_size < LARGEST_WHEEL
    assert {path.parent.name for path in binaries(unpacked)} == {*processor.BUILDS}
    for path in binaries(unpacked):
        content = path.read_bytes()
        # Nothing of the machine that made it, and nothing of the compiler's package.
        assert not re.search(re.escape(f"{ROOT}/").encode() + b"|site-packages/modular", content), path
        assert b"$ORIGIN/../../../modular/lib\0" in content
    assert not list(unpacked.rglob("lib*.so"))


@pytest.fixture(scope="module", params=PYTHONS, ids=lambda path: Path(path).name)
def installed(wheel, request, tmp_path_factory):
    """Calls the command of an environment that has the wheel and what it needs, and nothing else on PATH."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([request.param, "-m", "venv", folder / "env"], check=True)
    bin = folder / "env" / "bin"
    subprocess.run([bin / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check", wheel], check=True)

    def call(*words, command="llm-mojo", status=0):
        environment = {"PATH": f"{bin}", "HOME": f"{folder}", "LANG": "C.UTF-8"}
        done = subprocess.run([bin / command, *words], cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout if not status else done.stderr

    call.folder = folder
    return call


def test_it_trains_without_a_compiler(installed):
    size = sum(path.stat().st_size for path in (installed.folder / "env").rglob("*") if not path.is_symlink())
    assert size < LARGEST_ENVIRONMENT
    shutil.copy(ROOT / "docs/speed.md", installed.folder / "my.txt")
    output = installed("train", "my.txt", "--max-minutes", "0.3")
    assert "--- sample\n" in output and re.search(r"^saved runs/my/model_\d+\.bin$", output, re.M)
    checkpoint = next((installed.folder / "runs/my").glob("model_*.bin"))
    assert installed("sample", "-e", f"{checkpoint}", "--prompt", "The ", "-n", "5").startswith("The ")
    assert re.search(r"^loss \d", installed("eval", "-e", f"{checkpoint}", "-j", "data/my/my_val.bin"), re.M)
    assert installed("--version").startswith("llm.mojo ")
    for name in ("train", "sample", "eval", "tokenize", "test"):
        assert "--version" in installed(name, "--help")
    for name in ("prepare", "weights", "export", "datasets", "tokenizer", "plot", "watch", "bench"):
        assert f"usage: llm-mojo {name}" in installed(name, "--help")
    assert "install it with: pip install 'llm-mojo[plot]'" in installed("plot", "runs/my", "--out", "x.png", status=1)


def test_the_engine(installed):
    """What the program has trained, read and continued in Python."""
    code = (
        "import sys, llm_mojo; model = llm_mojo.GPT2.from_pretrained(sys.argv[1]);"
        "print('The ' + model.generate('The ', max_tokens=5, temperature=0).text)"
    )
    checkpoint = next((installed.folder / "runs/my").glob("model_*.bin"))
    words = ["-e", f"{checkpoint}", "--prompt", "The ", "-n", "5", "--temperature", "0"]
    assert installed("-c", code, f"{checkpoint.parent}", command="python") == installed("sample", *words)


def test_it_is_the_same_training_on_both_builds(installed):
    """To some digits: the sums of a vector have another order where vectors are longer, but for matrix products."""
    losses = {}
    for build, needed in processor.BUILDS.items():
        if not needed <= processor.features():
            continue
        (path,) = (installed.folder / "env").rglob(f"compiled/{build}/train_gpt2")
        words = [
            "-i",
            "data/my/my_train.bin",
            "-j",
            "data/my/my_val.bin",
            "--preset",
            "pydocs-small",
            "-x",
            "5",
            "-s",
            "0",
        ]
        output = subprocess.run([path, *words], cwd=installed.folder, capture_output=True, text=True, check=True).stdout
        losses[build] = [float(loss) for loss in re.findall(r"^step .* loss (\S+)", output, re.M)]
        assert len(losses[build]) == 5
    for other in losses.values():
        assert other == pytest.approx(losses["x86-64-v3"], abs=2e-5)


def with_cpuinfo(text, path, *words, folder):
    """Runs a program where /proc/cpuinfo is another, in a namespace of its own; None where that is not allowed."""
    (folder / "cpuinfo").write_text(text)
    script = 'mount --bind "$0" /proc/cpuinfo || exit 77; exec "$@"'
    command = ["unshare", "-rm", "sh", "-c", script, folder / "cpuinfo", path, *words]
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": os.environ["PATH"]})
    return None if done.returncode == 77 or done.stderr.startswith("unshare") else done


@pytest.mark.skipif(not shutil.which("unshare"), reason="needs util-linux")
def test_a_processor_that_lacks_something(unpacked, installed, tmp_path):
    whole = Path("/proc/cpuinfo").read_text()
    old = re.sub(r" (avx512_bf16|avx2)\b", "", whole)
    for path in binaries(unpacked):
        if path.suffix == ".so":
            continue
        lacks = "avx512_bf16" if path.parent.name == "x86-64-v4" else "avx2"
        for text, name in {old: "(avx2|avx512_bf16)", whole.replace(f" {lacks}", ""): lacks}.items():
            # As it was installed, so that its libraries are found.
            (place,) = (installed.folder / "env").rglob(f"compiled/{path.parent.name}/{path.name}")
            done = with_cpuinfo(text, place, "--version", folder=tmp_path)
            if done is None:
                pytest.skip("no namespaces here")
            assert (done.returncode, done.stdout) == (1, "")
            assert re.fullmatch(
                f"this program is the build for {path.parent.name}, and the processor lacks {name}; .+\n", done.stderr
            )
    # The command takes the build that runs, or says that there is none.
    command = installed.folder / "env" / "bin" / "llm-mojo"
    no_avx512 = with_cpuinfo(re.sub(r" avx512\w+", "", whole), command, "sample", "--version", folder=tmp_path)
    assert no_avx512.stdout.startswith("sample_gpt2 (llm.mojo)")
    none = with_cpuinfo(old, command, "sample", "--version", folder=tmp_path)
    assert (
        none.returncode == 1
        and "this processor lacks avx2; the installed programs need x86-64 with AVX2" in none.stderr
    )


def test_a_package_in_another_place_than_the_libraries(wheel, installed, tmp_path):
    """As with --target, or an environment that sees the packages of another."""
    python = installed.folder / "env" / "bin" / "python"
    there = tmp_path / "there"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", "--target", there, wheel], check=True)
    done = subprocess.run(
        [python, "-m", "llm_mojo", "sample", "--version"],
        env={"PATH": f"{python.parent}", "PYTHONPATH": f"{there}"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("sample_gpt2 (llm.mojo)"), done.stderr
