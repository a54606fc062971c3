"""What llm/cli/signals.mojo says in a process that watches for no signals, and then does."""

from std.ffi import external_call
from std.testing import TestSuite, assert_equal

from llm.cli.signals import SIGINT, SIGTERM, forget_signal, stop_signal, watch_for_interrupts, watch_for_signals


def test_who_watches_for_no_signals_has_none() raises:
    assert_equal(stop_signal(), 0)
    forget_signal()
    assert_equal(stop_signal(), 0)

    watch_for_signals()
    assert_equal(stop_signal(), 0)
    _ = external_call["raise", Int32](Int32(SIGTERM))
    assert_equal(stop_signal(), SIGTERM)
    # Watching again neither fails nor forgets.
    watch_for_interrupts()
    assert_equal(stop_signal(), SIGTERM)
    forget_signal()
    assert_equal(stop_signal(), 0)
    _ = external_call["raise", Int32](Int32(SIGINT))
    assert_equal(stop_signal(), SIGINT)
    forget_signal()


def main() raises:
    TestSuite.discover_tests[__functions_in_module()]().run()
