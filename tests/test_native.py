"""What is compiled at first use in a checkout, when again, and which build of a wheel a processor gets."""

import importlib.metadata
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from llm_mojo import Error, compiler, native, processor
from mojo_programs import ROOT

HASWELL = "fpu sse sse2 pni ssse3 fma cx16 sse4_1 sse4_2 movbe popcnt xsave avx f16c lahf_lm abm bmi1 avx2 bmi2".split()
SKYLAKE = HASWELL + "avx512f avx512dq avx512cd avx512bw avx512vl".split()


def cpuinfo(folder, flags, model=1):
    """A list of two equal processors, as Linux writes it."""
    one = f"processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel\t\t: {model}\ncpu MHz\t\t: 2596.1\nflags\t\t: {' '.join(flags)}\n\n"
    path = folder / "cpuinfo"
    path.write_text(one + one)
    return path


@pytest.mark.parametrize(
    ("flags", "build"),
    [
        (HASWELL, "x86-64-v3"),
        (SKYLAKE, "x86-64-v3"),
        ([*SKYLAKE, "avx512_bf16"], "x86-64-v4"),
        # Masked by a virtual machine.
        ([*HASWELL, "avx512_bf16"], "x86-64-v3"),
    ],
)
def test_the_build_for_a_processor(flags, build, tmp_path):
    assert processor.best_build(processor.features(cpuinfo(tmp_path, flags))) == build


def test_a_processor_that_is_too_old(tmp_path):
    flags = processor.features(cpuinfo(tmp_path, sorted({*HASWELL} - {"avx2", "fma"})))
    with pytest.raises(Error, match="lacks avx2, fma; .* x86-64 with AVX2 and FMA: Intel since Haswell"):
        processor.best_build(flags)
    assert processor.features(tmp_path / "none") == frozenset()


def test_the_processor_is_known_again(tmp_path):
    texts = [processor.identity(cpuinfo(tmp_path, *what)) for what in [(HASWELL,), (HASWELL, 2), (SKYLAKE,)]]
    assert len({*texts}) == 3 and "MHz" not in texts[0]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """Sources of two programs, and a compiler that only writes a line down."""
    (tmp_path / "llm").mkdir()
    for name in ("llm/__init__.mojo", "a.mojo", "b.mojo", "python/a.mojo", "python/b.mojo"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"# {name}\n")
    built = []

    def compile_mojo(root, source, result, options=()):
        built.append(result.name)
        result.write_text(source.read_text())

    monkeypatch.setattr(compiler, "compile_mojo", compile_mojo)
    monkeypatch.setattr(native, "CHECKOUT", tmp_path)
    return tmp_path, built


def test_built_once_and_when_something_changes(checkout, monkeypatch):
    root, built = checkout

    def builds(source="a.mojo", options=()):
        before = len(built)
        result = compiler.build(root, root / source, root / "build" / Path(source).stem, options)
        assert result.read_text() == (root / source).read_text()
        return len(built) - before

    assert builds() == 1 and builds() == 0
    (root / "b.mojo").write_text("# of another program\n")
    assert builds() == 0
    (root / "llm" / "new.mojo").write_text("# of all programs\n")
    assert builds() == 1 and builds() == 0
    (root / "a.mojo").write_text("# its own\n")
    assert builds() == 1 and builds(options=["-D", "CHECKS"]) == 1 and builds() == 1
    for name, value in {
        "processor.identity": lambda: "another",
        "compiler.libraries": lambda: Path("/moved"),
        "importlib.metadata.version": lambda name: "1.3",
    }.items():
        where = {"processor": processor, "compiler": compiler}.get(name.split(".")[0], importlib.metadata)
        monkeypatch.setattr(where, name.rpartition(".")[2], value)
        assert builds() == 1 and builds() == 0, name
    (root / "build" / "a").unlink()
    assert builds() == 1
    # In a folder of its own a source may have others beside it.
    assert builds("python/a.mojo") == 1
    (root / "python" / "b.mojo").write_text("# beside it\n")
    assert builds("python/a.mojo") == 1


def test_two_at_once_build_once(checkout):
    root, built = checkout
    threads = [threading.Thread(target=compiler.build, args=(root, root / "a.mojo", root / "build/a")) for _ in "1234"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert built == ["a"]


def test_a_failed_build_leaves_no_trace(checkout, monkeypatch):
    root, _ = checkout
    compiler.build(root, root / "a.mojo", root / "build/a")
    (root / "a.mojo").write_text("not Mojo\n")
    monkeypatch.undo()
    with pytest.raises(Error, match=r"a\.mojo does not build, status 1 of the compiler:\n(.|\n)*a\.mojo:1"):
        compiler.build(root, root / "a.mojo", root / "build/a")
    assert (root / "build/a").read_text() == "# a.mojo\n"
    assert sorted(path.name for path in (root / "build").iterdir()) == ["a", "a.lock", "a.stamp"]
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Error, match="no C compiler: linking needs 'cc'"):
        compiler.build(root, root / "a.mojo", root / "build/a")


def test_a_small_program_and_a_small_extension(tmp_path, monkeypatch):
    """With the compiler itself; the import is that of the engine."""
    (tmp_path / "llm").mkdir()
    (tmp_path / "llm" / "__init__.mojo").write_text('"""Nothing."""\n')
    (tmp_path / "train_gpt2.mojo").write_text('def main():\n    print("it trains")\n')
    (tmp_path / "python").mkdir()
    (tmp_path / "python" / "llm_mojo_engine.mojo").write_text(
        "from std.os import abort\n"
        "from std.python import PythonObject\n"
        "from std.python.bindings import PythonModuleBuilder\n\n\n"
        "@export\n"
        'def PyInit__engine() abi("C") -> PythonObject:\n'
        "    try:\n"
        '        var m = PythonModuleBuilder("_engine")\n'
        '        m.def_function[double]("double", docstring="Doubles")\n'
        "        return m.finalize()\n"
        "    except e:\n"
        '        abort(String("failed: ", e))\n\n\n'
        "def double(x: PythonObject) raises -> PythonObject:\n"
        "    return x + x\n"
    )
    monkeypatch.setattr(native, "CHECKOUT", tmp_path)
    assert subprocess.check_output([native.program("train_gpt2")]) == b"it trains\n"
    path = native.extension_path()
    code = (
        "import sys; from importlib.machinery import ExtensionFileLoader as Loader;"
        "from importlib.util import module_from_spec, spec_from_loader;"
        "loader = Loader('llm_mojo._engine', sys.argv[1]);"
        "module = module_from_spec(spec_from_loader(loader.name, loader)); loader.exec_module(module);"
        "print(module.double(21))"
    )
    assert subprocess.check_output([sys.executable, "-c", code, path]) == b"42\n"


def test_neither_wheel_nor_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(native, "CHECKOUT", tmp_path)
    with pytest.raises(Error, match="neither compiled programs nor Mojo sources; install llm-mojo"):
        native.program("train_gpt2")


def test_a_wheel_gives_the_build_of_the_processor(tmp_path, monkeypatch):
    monkeypatch.setattr(native, "INSTALLED", tmp_path)
    monkeypatch.setattr(processor, "features", lambda: frozenset(SKYLAKE))
    path = tmp_path / "x86-64-v3" / "train_gpt2"
    path.parent.mkdir()
    path.touch()
    assert native.program("train_gpt2") == path
    with pytest.raises(Error, match="x86-64-v3/_engine.so is missing: the package is not whole"):
        native.extension_path()


def test_every_program_has_a_source():
    assert all((ROOT / f"{name}.mojo").is_file() for name in native.PROGRAMS)
