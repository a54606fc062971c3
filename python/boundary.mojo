"""Between the engine and whoever calls it as a C library: owners as addresses, errors as messages."""

from std.memory.alloc import unsafe_alloc

from llm.base.memory import Tensor

comptime MESSAGE_BYTES = 4096
"""Room for a message with its final zero, which every caller brings."""


def keep[T: Movable & Deinitable](var value: T) -> Int:
    """Moves an object to where it stays until `release`, and returns its address."""
    var place = unsafe_alloc[T](1)
    place.unsafe_write(value^)
    return Int(place)


def at[T: Movable & Deinitable](address: Int) -> Pointer[T, MutUntrackedOrigin]:
    """Finds the object that `keep` has put to an address."""
    return Pointer[T, MutUntrackedOrigin](unsafe_from_address=address)


def release[T: Movable & Deinitable](address: Int):
    """Ends the object that `keep` has put to an address."""
    at[T](address).unsafe_deinit_pointee()
    at[T](address).unsafe_free()


def view[dtype: DType](address: Int, size: Int) -> Tensor[dtype]:
    """Views the caller's array of so many scalars."""
    return Tensor[dtype](Tensor[dtype].Ptr(unsafe_from_address=address), size)


def tokens_at(address: Int, size: Int) -> List[Int32]:
    """Copies the caller's array of token ids."""
    var tokens = List[Int32](capacity=size)
    for i in range(size):
        tokens.append(view[DType.int32](address, size)[i])
    return tokens^


def text_at(address: Int, size: Int) -> String:
    """Copies the caller's text of so many bytes."""
    return String(unsafe_from_utf8=Span(view[DType.uint8](address, size).span()))


def attempt[Call: def() raises -> None](call: Call, message: Int) -> Int:
    """Makes a call. Returns 0, or 1 after writing what went wrong to `message`."""
    try:
        call()
        return 0
    except error:
        var text = String(error)
        var bytes = text.as_bytes()
        var room = view[DType.uint8](message, MESSAGE_BYTES)
        var size = min(len(bytes), MESSAGE_BYTES - 1)
        for i in range(size):
            room[i] = bytes[i]
        room[size] = 0
        return 1
