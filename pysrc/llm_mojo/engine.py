"""The compiled engine: its C functions, called with what Python has. The one module that loads the library.

Calls release the interpreter's lock (ctypes does so), so other threads go on meanwhile. `python/llm_mojo_engine.mojo` says what
each function does.
"""

import ctypes
import functools
import os
from typing import Any

import numpy as np

from llm_mojo import Error, native

MESSAGE_BYTES = 4096
_INT, _FLOAT, _DOUBLE = ctypes.c_int64, ctypes.c_float, ctypes.c_double
# What each function takes before its message: i an int64 or an address, f a float32, d a float64.
_FUNCTIONS = {
    "read_config": "iii",
    "model_new": "iiiiii",
    "model_plan": "iiii",
    "model_initialize": "iii",
    "model_load": "iiii",
    "model_save": "iiiii",
    "model_changed": "ii",
    "model_forward": "iiiii",
    "model_logits": "iiiiii",
    "model_loss": "iiiii",
    "model_losses": "iiiii",
    "model_backward": "iiiiifi",
    "model_gradient_norm": "iii",
    "model_hidden_state": "iiiii",
    "model_attention": "iiiiii",
    "optimizer_new": "iffffifi",
    "optimizer_update": "iiiiffi",
    "decoder_new": "iiiiii",
    "decoder_begin": "iiiiii",
    "decoder_end": "iii",
    "decoder_step": "iiiiii",
    "sampler_new": "ididi",
    "sampler_draw": "iiii",
    "tokenizer_new": "iiii",
    "tokenizer_encode": "iiiiii",
}
# These cannot fail: what they take, what they return.
_SURE = {
    "threads": ("", _INT),
    "model_tensor": ("iiii", _INT),
    "model_free": ("ii", None),
    "optimizer_free": ("i", None),
    "decoder_free": ("ii", None),
    "sampler_free": ("i", None),
    "tokenizer_free": ("i", None),
}
_KINDS = {"i": _INT, "f": _FLOAT, "d": _DOUBLE}


class EngineError(Error, ValueError):
    """What the engine refuses, with what it expected and what it found."""


@functools.cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(native.extension_path()))
    for name, kinds in _FUNCTIONS.items():
        function = getattr(library, f"llm_{name}")
        function.argtypes = [*(_KINDS[kind] for kind in kinds), ctypes.c_char_p]
        function.restype = _INT
    for name, (kinds, result) in _SURE.items():
        function = getattr(library, f"llm_{name}")
        function.argtypes = [_KINDS[kind] for kind in kinds]
        function.restype = result
    return library


def call(name: str, *arguments: Any) -> None:
    """Calls a function that can fail. Raises EngineError with its message."""
    message = ctypes.create_string_buffer(MESSAGE_BYTES)
    if getattr(_library(), f"llm_{name}")(*arguments, message):
        raise EngineError(message.value.decode(errors="replace"))


def call_surely(name: str, *arguments: Any) -> Any:
    """Calls a function that cannot fail."""
    return getattr(_library(), f"llm_{name}")(*arguments)


def default_threads() -> int:
    """How many threads fit this machine and what this process may use of it."""
    return call_surely("threads")


class Handle:
    """Owner of an object of the engine, which ends with it. `others` are what the object itself needs until then."""

    def __init__(self, name: str, *arguments: Any, more: tuple = (), after: tuple = (), others: tuple = ()):
        """Calls NAME_new(*arguments, address, *after) and later NAME_free(address, *more)."""
        self._process = os.getpid()
        self._name, self._more, self._others = name, more, others
        self._address = 0
        address = _INT(0)
        call(f"{name}_new", *arguments, ctypes.addressof(address), *after)
        self._address = address.value
        self._free = getattr(_library(), f"llm_{name}_free")

    @property
    def address(self) -> int:
        """Where the object is. Raises Error in a process that fork() has made: its threads are not there."""
        if os.getpid() != self._process:
            raise Error(
                f"this {self._name} was made in process {self._process}, and fork() took no threads along into process"
                f" {os.getpid()}; make it again there, or start processes with multiprocessing's 'spawn'"
            )
        return self._address

    def __del__(self, getpid=os.getpid):
        # Held by itself: at the end of Python a module loses its names before what is kept elsewhere ends.
        if getattr(self, "_address", 0) and getpid() == self._process:
            self._free(self._address, *self._more)
            self._address = 0


def address_of(array: np.ndarray) -> int:
    """Where the numbers of a contiguous array begin."""
    assert array.flags.c_contiguous
    return array.ctypes.data


def view(address: int, shape: tuple[int, ...], owner: Any = None, writeable: bool = False) -> np.ndarray:
    """A float32 array over the engine's memory, without a copy. It keeps `owner` alive."""
    room: Any = (_FLOAT * int(np.prod(shape, dtype=np.int64))).from_address(address)
    # NumPy keeps the room, and the room its owner.
    room.owner = owner
    array = np.frombuffer(room, dtype=np.float32).reshape(shape)
    array.flags.writeable = writeable
    return array


def bytes_argument(text: bytes) -> tuple[int, int, Any]:
    """(address, size, what keeps them) of bytes."""
    keeper = ctypes.create_string_buffer(text, len(text) + 1)
    return ctypes.addressof(keeper), len(text), keeper
