"""Programs for ARM, emulated, compute what those for x86 do. Run by `make test-arm`."""

import json

import pytest

import arm
from mojo_builds import BUILD, TARGET, Builder
from mojo_programs import ROOT, Program
from tiny_run import flags

pytestmark = pytest.mark.skipif(TARGET != arm.TARGET, reason="for `make test-arm`, which builds for ARM")


@pytest.fixture(scope="module")
def program(mojo_program):
    return mojo_program("train_gpt2.mojo")


@pytest.fixture(scope="module")
def at_home(program):
    """The trainer for this machine."""
    builder = Builder(folder=BUILD.with_name("tests"), target="")
    binary, errors = builder.build(ROOT / "train_gpt2.mojo")
    builder.stop()
    assert not errors, errors
    return Program(binary)


@pytest.mark.builds("train_gpt2.mojo")
@pytest.mark.parametrize(
    "more", [[], ["--dtype", "bf16"], ["--dropout", 0.2, "--threads", 3]], ids=["fp32", "bf16", "dropout"]
)
def test_twenty_four_steps_have_the_losses_of_x86(more, program, at_home, data, tmp_path):
    logs = {}
    for name, trainer in {"arm": program, "x86": at_home}.items():
        trainer.output(*flags(data, tmp_path / name, *more))
        logs[name] = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
    assert len(logs["arm"]) == len(logs["x86"]) > 24
    # Multiplications and additions are contracted and vectors are summed elsewhere on each; bf16's dot products differ.
    tolerance = 2e-3 if "bf16" in more else 2e-5
    for emulated, native in zip(logs["arm"], logs["x86"]):
        assert emulated.keys() == native.keys()
        for value in ("loss", "val_loss", "norm"):
            if value in native:
                assert emulated[value] == pytest.approx(native[value], rel=tolerance), (emulated, native)
