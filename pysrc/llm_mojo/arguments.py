"""Checks of what callers of the Python API pass: whatever is wrong is a ValueError that says what was expected and found."""

import math
import operator
from typing import Any

import numpy as np

from llm_mojo.engine import EngineError

INT64_MAX = 2**63 - 1


def integer(name: str, value: Any, least: int, most: int = INT64_MAX) -> int:
    """An integer within bounds."""
    try:
        number = operator.index(value)
    except TypeError:
        raise EngineError(f"{name}: expected an integer, got {value!r:.60}") from None
    if isinstance(value, bool) or not least <= number <= most:
        limits = f"of at least {least}" if most == INT64_MAX else f"from {least} to {most}"
        raise EngineError(f"{name}: expected an integer {limits}, got {value!r:.60}")
    return number


def real(name: str, value: Any, least: float = -math.inf, most: float = math.inf) -> float:
    """A finite number within bounds."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise EngineError(f"{name}: expected a number, got {value!r:.60}") from None
    if isinstance(value, (str, bytes)) or not (math.isfinite(number) and least <= number <= most):
        limits = f" of at least {least:g}" if most == math.inf else f" from {least:g} to {most:g}"
        raise EngineError(f"{name}: expected a finite number{limits if least > -math.inf else ''}, got {value!r:.60}")
    return number


def token_array(name: str, tokens: Any, vocab_size: int, least: int = 0) -> np.ndarray:
    """Token ids as a contiguous int32 array of one or two dimensions; ids are from `least` to below vocab_size."""
    try:
        array = np.asarray(tokens)
    except (ValueError, TypeError, OverflowError) as error:
        raise EngineError(f"{name}: expected token ids, (T,) or (B,T): {error}") from None
    if array.size and array.dtype.kind not in "iu":
        raise EngineError(f"{name}: expected integers, found {array.dtype}")
    if array.ndim not in (1, 2) or not array.size:
        raise EngineError(
            f"{name}: expected token ids of shape (T,) or (B,T) with T and B of at least 1, found {array.shape}"
        )
    lowest, highest = int(array.min()), int(array.max())
    if lowest < least or highest >= vocab_size:
        wrong = lowest if lowest < least else highest
        raise EngineError(
            f"{name}: expected token ids from {least} to {vocab_size - 1}, found {wrong}; use the tokenizer that the model was"
            " trained with"
        )
    return np.ascontiguousarray(array, dtype=np.int32)


def utf8(name: str, text: Any) -> bytes:
    """The bytes of a text; halves of characters (lone surrogates) become U+FFFD, as in tiktoken."""
    if isinstance(text, (bytes, bytearray, memoryview)):
        return bytes(text)
    if not isinstance(text, str):
        raise EngineError(f"{name}: expected text, got {type(text).__name__}")
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()
