"""The first that a program does, before anything is allocated."""

from std.ffi import external_call

from llm.base.address_space import LEAST_ADDRESSES, address_limit, raise_address_limit

comptime _ERRORS = Int32(2)


def expect_addresses():
    """Ends the program with a message and status 1 where it may have fewer addresses than `LEAST_ADDRESSES`."""
    raise_address_limit()
    if address_limit() < LEAST_ADDRESSES:
        var text = StaticString(
            "memory: expected a limit of 2.2 GB of addresses or more, found less; say ulimit -v unlimited before (it"
            " limits addresses, not memory)\n"
        )
        var vector = Array[Int, 2](fill=text.byte_length())
        vector[0] = Int(text.unsafe_ptr())
        _ = external_call["writev", Int](_ERRORS, vector.unsafe_ptr(), Int32(1))
        external_call["_exit", NoneType](Int32(1))
