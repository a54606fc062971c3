"""Reads the weights in PyTorch's own files, pytorch_model.bin and nanoGPT's ckpt.pt; only for these is PyTorch needed.

They are pickles. PyTorch reads them with weights_only, which makes tensors and plain values and runs no code of theirs.
"""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llm_mojo import Error
from llm_mojo.formats import FormatError


class TorchWeights:
    """The tensors of some state dictionaries, as Safetensors gives them."""

    def __init__(self, paths: Sequence[Path], states: Sequence[dict] | None = None):
        self.paths = paths
        self.places: dict[str, Any] = {}
        for state in states or map(load, paths):
            self.places |= {
                name: value for name, value in state.items() if isinstance(name, str) and hasattr(value, "shape")
            }

    def __str__(self):
        return ", ".join(map(str, self.paths))

    def read(self, name: str, shape: Sequence[int]) -> np.ndarray:
        """Returns a tensor as float32. It must have this shape."""
        import torch

        tensor = self.places[name]
        if tuple(tensor.shape) != tuple(shape):
            raise FormatError(
                f"weights: {self}: expected {name} of shape {tuple(shape)}, found {tuple(tensor.shape)};"
                " does config.json belong to it?"
            )
        if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise FormatError(f"weights: {self}: expected {name} in 32 or 16 bits, found {tensor.dtype}; save it so")
        return np.asarray(tensor.detach().float().contiguous())

    def check_unchanged(self) -> None:
        """PyTorch keeps the files open: there is nothing to check."""


def load(path: Path) -> dict:
    """Returns the dictionary in a file that torch.save wrote."""
    try:
        import torch
    except ModuleNotFoundError:
        raise Error(
            f"weights: {path} is PyTorch's own format, and PyTorch is not installed; install it (pip install torch), or"
            " save the model as model.safetensors where it is"
        ) from None
    try:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # the format before 1.6 cannot be mapped
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (
        OSError,
        RuntimeError,
        ValueError,
        TypeError,
        LookupError,
        EOFError,
        AttributeError,
        pickle.UnpicklingError,
    ) as error:
        reason = f"{error}".strip().partition("\n")[0]
        raise FormatError(f"weights: {path}: not a file of tensors ({reason:.200}); get or save it again") from None
    if not isinstance(state, dict):
        raise FormatError(
            f"weights: {path}: expected names and tensors, found {type(state).__name__}; save a state_dict"
        )
    return state
