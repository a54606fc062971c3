"""What llm/report.mojo writes, to the letter."""

from std.os.path import exists
from std.tempfile import mkdtemp
from std.testing import TestSuite, assert_equal, assert_false
from std.utils.numerics import inf, nan

from llm.report import Report, Step, Validation, aligned, fixed, grouped, scientific


def a_step(loss: Float32, norm: Optional[Float32]) -> Step:
    return Step(
        step=12,
        steps=40,
        loss=loss,
        norm=norm,
        learning_rate=1e-4,
        tokens=256,
        milliseconds=523.4321,
        shard=0,
        sample=11,
    )


def test_numbers() raises:
    assert_equal(fixed(4.1234567, 6), "4.123457")
    assert_equal(fixed(-0.05, 1), "-0.1")
    assert_equal(fixed(1e15, 0), "1000000000000000")
    assert_equal(fixed(nan[DType.float64](), 2), "nan")
    assert_equal(fixed(inf[DType.float64](), 2), "inf")
    assert_equal(scientific(3e-4, 2), "3.00e-04")
    assert_equal(grouped(0), "0")
    assert_equal(grouped(999), "999")
    assert_equal(grouped(-1000), "-1,000")
    assert_equal(grouped(124439808), "124,439,808")


def test_aligned() raises:
    assert_equal(aligned([(String("a"), String("1")), (String("long"), String("2"))]), "a     1\nlong  2\n")


def test_step_line() raises:
    assert_equal(a_step(4.123456, None).line(), "step   12/40 | loss 4.123456 | lr 1.00e-04 | 523.4 ms | 489 tok/s")
    assert_equal(
        a_step(4.123456, Float32(1.25)).line(),
        "step   12/40 | loss 4.123456 | norm 1.2500 | lr 1.00e-04 | 523.4 ms | 489 tok/s",
    )


def test_step_json() raises:
    assert_equal(
        a_step(4.21, Float32(1.3)).json(),
        (
            '{"step": 12, "loss": 4.21, "norm": 1.3, "lr": 0.0001, "ms": 523.432, "tokens_per_second": 489, "shard": 0,'
            ' "sample": 11}'
        ),
    )
    assert_equal(
        a_step(nan[DType.float32](), None).json(),
        (
            '{"step": 12, "loss": null, "norm": null, "lr": 0.0001, "ms": 523.432, "tokens_per_second": 489, "shard":'
            ' 0, "sample": 11}'
        ),
    )


def test_logged_losses_are_exact() raises:
    # 0.5037615 is a neighbour of this number, not the number.
    assert_equal(Validation(3, Float32(8451716) / 16777216).json(), '{"step": 3, "val_loss": 0.50376153}')
    assert_equal(Validation(3, Float32(1) / 3).json(), '{"step": 3, "val_loss": 0.33333334}')


def test_the_log_grows_line_by_line() raises:
    var folder = mkdtemp() + "/run"
    var report = Report(folder)
    report.validation(Validation(0, 3.5))
    assert_equal(open(folder + "/log.jsonl", "r").read(), '{"step": 0, "val_loss": 3.5}\n')
    report.validation(Validation(1, 3.25))
    var again = Report(folder, resume=True)
    again.validation(Validation(2, 3))
    assert_equal(
        open(folder + "/log.jsonl", "r").read(),
        '{"step": 0, "val_loss": 3.5}\n{"step": 1, "val_loss": 3.25}\n{"step": 2, "val_loss": 3}\n',
    )
    var anew = Report(folder)
    anew.validation(Validation(0, 1))
    assert_equal(open(folder + "/log.jsonl", "r").read(), '{"step": 0, "val_loss": 1}\n')


def test_no_folder_no_log() raises:
    var report = Report("")
    report.validation(Validation(0, 3.5))
    assert_false(exists("/log.jsonl"))


def main() raises:
    TestSuite.discover_tests[__functions_in_module()]().run()
