"""When a run keeps what (llm/cli/keeping.mojo), by a clock that the test turns."""

from std.testing import TestSuite, assert_equal, assert_false, assert_true

from llm.cli.arguments import Arguments
from llm.cli.keeping import Keeping
from llm.cli.options import options

comptime MINUTE = 60_000_000_000
comptime LARGE = 124_439_808


def keeping(*flags: String, num_parameters: Int = LARGE) raises -> Keeping:
    var args = Arguments("train_gpt2", "", options())
    var words = List[String]()
    for ref flag in flags:
        words.append(flag)
    args.parse(words)
    return Keeping(args, num_parameters, MINUTE)


def test_at_validations_five_minutes_apart() raises:
    var kept = keeping("-o", "run", "-v", "10")
    assert_equal(kept.keep, 2)
    assert_false(kept.is_due(10, 6 * MINUTE - 1))
    assert_true(kept.is_due(20, 6 * MINUTE))
    assert_false(kept.is_due(21, 6 * MINUTE))
    kept.saved(7 * MINUTE)
    assert_false(kept.is_due(30, 12 * MINUTE - 1))
    assert_true(kept.is_due(40, 12 * MINUTE))


def test_without_validations_every_five_minutes() raises:
    assert_false(keeping("-o", "run", "-v", "0").is_due(7, 5 * MINUTE))
    assert_true(keeping("-o", "run", "-v", "0").is_due(7, 6 * MINUTE))


def test_flags_count_as_they_say() raises:
    var every = keeping("-o", "run", "-n", "3")
    assert_equal(every.keep, 0)
    assert_true(every.is_due(3, MINUTE))
    assert_false(every.is_due(10, 100 * MINUTE))
    assert_false(keeping("-o", "run", "-n", "0").is_due(10, 100 * MINUTE))
    assert_false(keeping("-o", "run", "-n", "0").keeps_best)
    assert_equal(keeping("-o", "run", "-nk", "5").keep, 5)
    assert_equal(keeping("-o", "run", "-nk", "0").keep, 0)
    assert_true(keeping("-o", "run", "-nk", "5").is_due(10, 6 * MINUTE))
    assert_equal(keeping("-o", "run", "-n", "3", "-nk", "1").keep, 1)


def test_without_a_folder_nothing() raises:
    var none = keeping("-v", "10")
    assert_false(none.is_due(10, 100 * MINUTE))
    assert_false(none.best_is_due(100 * MINUTE))


def test_the_best_of_a_large_model_five_minutes_apart() raises:
    var large = keeping("-o", "run")
    assert_true(large.best_is_due(MINUTE))
    assert_false(large.best_is_due(6 * MINUTE - 1))
    assert_true(large.best_is_due(6 * MINUTE))
    var small = keeping("-o", "run", num_parameters=1_000_000)
    var asked = keeping("-o", "run", "-n", "100")
    var patient = keeping("-o", "run", "-n", "0", "--patience", "3")
    for time in range(3):
        assert_true(small.best_is_due(MINUTE + time))
        assert_true(asked.best_is_due(MINUTE + time))
        assert_true(patient.best_is_due(MINUTE + time))


def test_how_many_lie_on_the_disk() raises:
    # One that replaces another is written first.
    assert_equal(keeping("-o", "run").most(1000), 3)
    assert_equal(keeping("-o", "run", "-n", "100").most(1000), 11)
    assert_equal(keeping("-o", "run", "-n", "100", "-nk", "4").most(1000), 5)
    assert_equal(keeping("-o", "run", "-n", "400", "-nk", "4").most(1000), 3)
    assert_equal(keeping("-o", "run", "-n", "0").most(1000), 1)


def main() raises:
    TestSuite.discover_tests[__functions_in_module()]().run()
