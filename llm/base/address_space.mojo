"""The limit of addresses that a process may have (`ulimit -v`, batch systems): the allocator takes them by the gigabyte, used or not.

Without its first gigabyte it ends the program with a stack trace, whatever is wanted. So programs ask before they allocate
(`llm/cli/start.mojo`).
"""

from std.ffi import external_call

comptime _ADDRESS_SPACE = Int32(9)
comptime _NO_LIMIT = Int.MAX
comptime LEAST_ADDRESSES = 2_200_000_000
"""Bytes of addresses below which the allocator cannot get a gigabyte that begins at a multiple of one."""


def address_limit() -> Int:
    """Returns how many bytes of addresses the process may have; `Int.MAX` for no limit."""
    # A struct rlimit: what holds, and how far it may be raised. No limit is -1 of an unsigned number.
    var limit = Array[Int, 2](fill=-1)
    _ = external_call["getrlimit", Int32](_ADDRESS_SPACE, limit.unsafe_ptr())
    return limit[0] if limit[0] >= 0 else _NO_LIMIT


def raise_address_limit():
    """Raises the limit as far as the process may do so itself. Allocates nothing."""
    var limit = Array[Int, 2](fill=-1)
    if external_call["getrlimit", Int32](_ADDRESS_SPACE, limit.unsafe_ptr()) == 0 and limit[0] != limit[1]:
        limit[0] = limit[1]
        _ = external_call["setrlimit", Int32](_ADDRESS_SPACE, limit.unsafe_ptr())
