"""How many steps fit into a time, on machines of a made clock; and the learning rate of a run that learns of its end on the way.
"""

from std.math import cos, pi
from std.testing import TestSuite, assert_almost_equal, assert_equal, assert_true

from llm.optim.schedule import Schedule
from llm.train.time_limit import TimeLimit

comptime SECONDS = 120


def seconds_of_run[
    Machine: def(Float64) -> Float64
](
    machine: Machine, *, start: Float64 = 0.4, pause: Float64 = 0.3, every: Int = 100, last: Float64 = 0.5
) raises -> Float64:
    """Returns how long a run of SECONDS takes where `machine` tells the seconds of a step that begins at a time."""
    var limit = TimeLimit(SECONDS, pause_every=every)
    var clock = start + pause
    var told = Float64(0)
    var step = 0
    var steps = 0
    while step == 0 or steps == 0 or step < steps:
        var paused = step % every == 0
        if paused and step > 0:
            clock += pause
        clock += machine(clock)
        step += 1
        var chosen = limit.after_step(step, steps, clock - told, paused=paused)
        told = clock
        if chosen:
            assert_true(chosen.value() > step)
            steps = chosen.value()
    return clock + pause + last


def test_a_steady_machine() raises:
    for milliseconds in [Float64(0.3), 12, 100, 900]:

        def steady(clock: Float64) {var milliseconds} -> Float64:
            return milliseconds / 1000

        assert_almost_equal(seconds_of_run(steady), SECONDS, atol=3)


def test_one_that_gets_slower_or_faster_in_the_middle() raises:
    for factor in [Float64(2.5), 0.4]:
        for since in [Float64(0), 3, 30, 60, 100]:

            def changing(clock: Float64) {var factor, var since} -> Float64:
                return 0.02 * (factor if clock > since else 1)

            assert_almost_equal(seconds_of_run(changing), SECONDS, atol=4)


def test_one_that_hesitates() raises:
    def hesitating(clock: Float64) -> Float64:
        return 2 if Int(clock) % 10 == 3 else 0.02

    assert_almost_equal(seconds_of_run(hesitating), SECONDS, atol=6)


def test_long_pauses_count() raises:
    def steady(clock: Float64) -> Float64:
        return 0.02

    assert_almost_equal(seconds_of_run(steady, pause=4), SECONDS, atol=4)
    assert_almost_equal(seconds_of_run(steady, every=7, pause=0.1), SECONDS, atol=3)


def test_a_time_that_is_over_leaves_one_step() raises:
    var limit = TimeLimit(1, pause_every=0)
    for step in range(1, 3):
        assert_true(not limit.after_step(step, 0, 10, paused=False))
    assert_equal(limit.after_step(3, 0, 10, paused=False).value(), 4)


def test_an_end_that_is_known_during_the_warm_up_is_known_from_the_start() raises:
    for shape in ["cosine", "linear", "wsd", "constant"]:
        var known = Schedule(String(shape), peak=3e-3, warmup=40, final_fraction=0.1)
        var told = known.copy()
        told.wait()
        told.turn(7, 900)
        told.turn(30, 500)
        for step in range(500):
            assert_equal(told.learning_rate(step, 500), known.learning_rate(step, 500))


def test_a_rate_without_an_end_stays_at_its_peak() raises:
    var schedule = Schedule("cosine", peak=1, warmup=10)
    schedule.wait()
    assert_equal(schedule.learning_rate(4, 20), 0.5)
    for step in range(10, 1000, 90):
        assert_equal(schedule.learning_rate(step, 20), 1)


def test_what_is_left_of_the_decay_goes_to_the_new_end() raises:
    var schedule = Schedule("cosine", peak=1, warmup=100, final_fraction=0)
    schedule.wait()
    schedule.turn(50, 1100)
    schedule.turn(350, 850)
    schedule.turn(600, 700)
    # A quarter of the decay in 250 steps, half of the rest in another 250, and the rest in 100.
    assert_almost_equal(schedule.learning_rate(349, 700), 0.5 * (1 + cos(pi * 0.249)), atol=1e-12)
    assert_almost_equal(schedule.learning_rate(350, 700), 0.5 * (1 + cos(pi * 0.25)), atol=1e-12)
    assert_almost_equal(schedule.learning_rate(475, 700), 0.5 * (1 + cos(pi * 0.4375)), atol=1e-12)
    assert_almost_equal(schedule.learning_rate(600, 700), 0.5 * (1 + cos(pi * 0.625)), atol=1e-12)
    assert_almost_equal(schedule.learning_rate(700, 700), 0, atol=1e-12)
    var wsd = Schedule("wsd", peak=1, final_fraction=0)
    wsd.wait()
    wsd.turn(10, 1000)
    # The decay from 800 on would have begun before.
    wsd.turn(700, 750)
    assert_equal(wsd.learning_rate(700, 750), 1)
    assert_almost_equal(wsd.learning_rate(725, 750), 1 - 0.5**0.5, atol=1e-12)


def main() raises:
    TestSuite.discover_tests[__functions_in_module()]().run()
