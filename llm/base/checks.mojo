"""Checks that only a build with `-D CHECKS` makes. Kernels cannot raise, so one that fails ends the process.

That is for mistakes of the program alone, never of its user: those are raised, in every build. This is the one file
outside the command line that ends a process.
"""

from std.os import abort
from std.reflection import SourceLocation, call_location
from std.sys import is_defined

comptime CHECKS = is_defined["CHECKS"]()
"""With `mojo build -D CHECKS` bounds are checked; otherwise nothing of that is compiled."""


@always_inline
def check_bounds(index: Int, width: Int, size: Int):
    """Ends the process unless index .. index + width - 1 lie in 0 .. size - 1; an empty range may lie at the end.

    To be called from a function that is inlined itself: the message names the line that calls that one.
    """
    comptime if CHECKS:
        if index < 0 or width < 0 or width > size or index > size - width:
            _out_of_bounds(index, width, size, call_location[inline_count=2]())


@always_inline
def check_that(condition: Bool, message: StaticString):
    """Ends the process unless something is so."""
    comptime if CHECKS:
        if not condition:
            _failed(message, call_location())


@no_inline
def _out_of_bounds(index: Int, width: Int, size: Int, place: SourceLocation):
    abort(String(t"check failed: index {index}, width {width} of a tensor of size {size} at {place}"))


@no_inline
def _failed(message: StaticString, place: SourceLocation):
    abort(String(t"check failed: {message} at {place}"))
