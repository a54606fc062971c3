"""What llm/cli/report.mojo writes, to the letter."""

from std.os.path import exists
from std.tempfile import mkdtemp
from std.testing import TestSuite, assert_equal, assert_false, assert_raises, assert_true
from std.utils.numerics import inf, nan

from llm.base.formatting import aligned, duration, fixed, grouped, percent, scientific, wrapped
from llm.cli.logs import LogEnd, lines_to_keep
from llm.cli.report import (
    Report,
    Validation,
    is_worth_a_line,
    live_line,
    share_of_peak,
    skipped_line,
    step_json,
    step_line,
)
from llm.cli.screen import Screen
from llm.train.step_record import StepRecord


def a_step(loss: Float32, norm: Float32, z: Optional[Float64] = None) -> StepRecord:
    return StepRecord(
        step=12,
        steps=40,
        loss=loss,
        norm=norm,
        learning_rate=1e-4,
        tokens=256,
        milliseconds=523.4321,
        shard=0,
        sample=11,
        epoch=3,
        loss_z=z,
        norm_z=z,
        skipped=Bool(z),
        waited_ms=z,
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


def test_share_of_peak() raises:
    # 256 tokens of 1e9 operations in 523.4321 ms are 489.08 G/s.
    assert_equal(percent(share_of_peak(a_step(4, 1), 1_000_000_000, 1e12)), "49%")
    assert_equal(percent(share_of_peak(a_step(4, 1), 1_000_000, 1e10)), "4.9%")
    assert_equal(percent(0.0994), "9.9%")
    assert_equal(percent(0.0996), "10%")


def test_aligned() raises:
    assert_equal(aligned([(String("a"), String("1")), (String("long"), String("2"))]), "a     1\nlong  2\n")


def test_durations() raises:
    assert_equal(duration(0), "0:00")
    assert_equal(duration(59.6), "1:00")
    assert_equal(duration(247), "4:07")
    assert_equal(duration(5400), "1:30:00")
    assert_equal(duration(360000), "100:00:00")


def test_step_line() raises:
    var screen = Screen()
    assert_equal(
        step_line(a_step(4.123456, 1.25), screen),
        "step   12/40 | loss 4.123456 | norm 1.2500 | lr 1.00e-04 | 523.4 ms | 489 tok/s",
    )
    assert_equal(
        step_line(a_step(4.123456, 1.25, Float64(2.5)), screen),
        (
            "step   12/40 | loss 4.123456 (+2.50z) | norm 1.2500 (+2.50z) | lr 1.00e-04 | 523.4 ms | 489 tok/s |"
            " outlier, update skipped"
        ),
    )


def test_the_line_that_lives_fits() raises:
    var step = a_step(4.123456, 1.25)
    step.step = 123456
    step.steps = 1234567
    step.tokens = 524288
    var whole = "step  123456/1234567 | loss 4.1235 | lr 1.0e-04 | 1001635 tok/s | 7.4% peak | ETA 2:46:40"
    assert_equal(live_line(step, 0.074, 10000, 200), whole)
    for width in range(30, 100):
        var line = live_line(step, 0.074, 10000, width)
        assert_true(line.byte_length() <= max(width, 36))
    assert_equal(live_line(step, 0.074, 10000, 79), whole.replace(" | lr 1.0e-04", ""))
    assert_equal(live_line(step, 0.074, 10000, 60), "step  123456/1234567 | loss 4.1235 | ETA 2:46:40")


def test_a_skipped_step_fits() raises:
    var screen = Screen()
    var step = a_step(12.123456, 1.25, Float64(12.5))
    step.step = 123456
    step.steps = 123456
    var end = ": loss 12.1235 (+12.50z), norm 1.25 (+12.50z)"
    assert_equal(skipped_line(step, screen, 100), "step 123456/123456 | outlier, update skipped" + end)
    assert_equal(skipped_line(step, screen, 79), "step 123456/123456 | skipped" + end)
    step.steps = 999
    step.step = 123
    assert_equal(skipped_line(step, screen, 79), "step  123/999 | outlier skipped" + end)


def test_some_hundred_steps_are_worth_a_line() raises:
    for steps in [1, 40, 101, 5000, 1_000_000]:
        var lines = 0
        for step in range(1, steps + 1):
            lines += Int(is_worth_a_line(step, steps))
        assert_true(lines <= 101)
        assert_true(lines >= min(steps, 90))
        assert_true(is_worth_a_line(1, steps) and is_worth_a_line(steps, steps))


def test_wrapped() raises:
    assert_equal(wrapped("model  four layers of six\nx  y", 16, 7), "model  four\n       layers of\n       six\nx  y")
    assert_equal(wrapped("model  averylongwordindeed", 10, 7), "model  averylongwordindeed")
    assert_equal(wrapped("a b", 80, 2), "a b")


def test_step_json() raises:
    assert_equal(
        step_json(a_step(4.21, 1.3)),
        (
            '{"step": 12, "loss": 4.21, "norm": 1.3, "lr": 0.0001, "ms": 523.432, "tokens": 256, "tokens_per_second":'
            ' 489, "shard": 0, "sample": 11, "epoch": 3}'
        ),
    )
    assert_equal(
        step_json(a_step(nan[DType.float32](), 1.3, Float64(-1.5))),
        (
            '{"step": 12, "loss": null, "norm": 1.3, "lr": 0.0001, "ms": 523.432, "tokens": 256, "tokens_per_second":'
            ' 489, "shard": 0, "sample": 11, "epoch": 3, "loss_z": -1.500, "norm_z": -1.500, "skipped": true,'
            ' "waited_ms": -1.500}'
        ),
    )


def test_logged_losses_are_exact() raises:
    # 0.5037615 is a neighbour of this number, not the number.
    assert_equal(Validation(3, Float32(8451716) / 16777216, True).json(), '{"step": 3, "val_loss": 0.50376153}')
    assert_equal(Validation(3, Float32(1) / 3, True).json(), '{"step": 3, "val_loss": 0.33333334}')


def test_the_log_grows_line_by_line() raises:
    var folder = mkdtemp() + "/run"
    var report = Report(folder)
    report.validation(Validation(0, 3.5, True))
    assert_equal(open(folder + "/log.jsonl", "r").read(), '{"step": 0, "val_loss": 3.5}\n')
    report.validation(Validation(1, 3.25, True))
    assert_equal(open(folder + "/main.log", "r").read(), "s:0 tel:3.5000\ns:1 tel:3.2500\n")


def test_a_resumed_log_goes_on_where_the_checkpoint_was() raises:
    var folder = mkdtemp()
    var text = String('{"step": 0, "val_loss": 3.5}\n{"step": 1, "loss": 3}\n{"step": 1, "val_loss": 3.25}\n')
    with open(folder + "/log.jsonl", "w") as file:
        file.write(text + '{"step": 2, "loss": 3}\n{"step": 3, "lo')
    with open(folder + "/main.log", "w") as file:
        file.write("s:0 tel:3.5000\ns:0 trl:3.0000 lr:0.1 norm:1\ns:1 tel:3.2500\ns:1 trl:3.0000 lr:0.1 norm:1\n")
    var report = Report(folder, LogEnd(1, True))
    report.validation(Validation(9, 1, True))
    assert_equal(open(folder + "/log.jsonl", "r").read(), text + '{"step": 9, "val_loss": 1}\n')
    assert_equal(
        open(folder + "/main.log", "r").read(),
        "s:0 tel:3.5000\ns:0 trl:3.0000 lr:0.1 norm:1\ns:1 tel:3.2500\ns:9 tel:1.0000\n",
    )


def test_a_validation_that_is_made_again_is_logged_once() raises:
    var steps = '{"step": 0, "val_loss": 3.5}\n{"step": 1, "loss": 3}\n'
    assert_equal(lines_to_keep(steps + '{"step": 1, "val_loss": 3.25}\n', 1, False), steps.byte_length())
    assert_equal(lines_to_keep("s:0 tel:1\ns:0 trl:1\ns:1 tel:1\ns:1 trl:1\n", 1, False), 20)
    var hellaswag = '{"step": 1, "hellaswag_acc": 0.25, "hellaswag_acc_norm": 0.5}\n'
    assert_equal(lines_to_keep(steps + hellaswag, 1, False), steps.byte_length())
    assert_equal(lines_to_keep(steps + hellaswag, 1, True), (steps + hellaswag).byte_length())
    assert_equal(lines_to_keep("s:0 trl:1\ns:1 tel:1\ns:1 eval:0.5\ns:1 trl:1\n", 1, False), 10)
    assert_equal(lines_to_keep("", 1, True), 0)
    assert_equal(lines_to_keep("no end", 1, True), 0)
    assert_equal(lines_to_keep("other\n", 1, True), 6)


def test_one_run_a_folder() raises:
    var folder = mkdtemp()
    var first = Report(folder)
    first.validation(Validation(0, 1, True))
    with assert_raises(contains="in use by another run"):
        _ = Report(folder)
    first.validation(Validation(1, 1, True))
    assert_equal(open(folder + "/main.log", "r").read(), "s:0 tel:1.0000\ns:1 tel:1.0000\n")


def test_no_folder_no_log() raises:
    var report = Report("")
    report.validation(Validation(0, 3.5, True))
    assert_false(exists("/log.jsonl"))


def main() raises:
    TestSuite.discover_tests[__functions_in_module()]().run()
