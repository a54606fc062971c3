"""GPT-2 in Python over the native engine: parameters and gradients as NumPy arrays, passes, steps, text.

import llm_mojo

model = llm_mojo.GPT2.from_pretrained("runs/pydocs")
print(model.generate("class "))
"""

import os
import shutil
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_mojo import Error
from llm_mojo.arguments import integer, real, token_array
from llm_mojo.engine import EngineError, Handle, address_of, bytes_argument, call, call_surely, default_threads, view
from llm_mojo.files import AnyPath
from llm_mojo.formats import ModelConfig, parameter_shapes
from llm_mojo.text import Tokenizer, find_tokenizer

if TYPE_CHECKING:
    from llm_mojo.generation import Alternatives, Batch

GPT2Config = ModelConfig
DTYPES = "fp32", "bf16"
ROWS = 64  # of logits that are looked at at a time
SIZES = "max_seq_len", "vocab_size", "num_layers", "num_heads", "channels"


class AdamW:
    """AdamW (Loshchilov and Hutter, 2019) with m and v of one model; weight decay on matrices and embeddings alone."""

    def __init__(
        self,
        learning_rate: float = 3e-4,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        decay_all: bool = False,
    ):
        """Takes the settings; the state is made at the first step. `decay_all`: weight decay on every tensor, as in llm.c."""
        self.learning_rate = real("learning_rate", learning_rate, 0)
        try:
            beta1, beta2 = betas
        except (TypeError, ValueError):
            raise EngineError(f"betas: expected two numbers, got {betas!r:.60}") from None
        self.betas = real("beta1", beta1, 0, 1), real("beta2", beta2, 0, 1)
        self.eps = real("eps", eps, 0)
        self.weight_decay = real("weight_decay", weight_decay, 0)
        self.decay_all = bool(decay_all)
        self._muon_rate = 0.0
        self.steps = 0
        """Steps taken."""
        self._handle: Handle | None = None
        self._model: GPT2 | None = None

    def _step(self, model: "GPT2", learning_rate: float, grad_scale: float) -> float:
        if self._model is None:
            settings = *self.betas, self.eps, self.weight_decay, int(self.decay_all), self._muon_rate
            self._handle = Handle("optimizer", address_of(model._sizes), *settings)
            self._model = model
        if self._model is not model:
            raise EngineError(
                "step: expected the model whose m and v this optimizer keeps, got another; make one for each"
            )
        assert self._handle
        norm = np.zeros(1, dtype=np.float32)
        where = self._handle.address, model._handle.address, model._bf16
        call("optimizer_update", *where, self.steps + 1, learning_rate, grad_scale, address_of(norm))
        self.steps += 1
        return float(norm[0])


class Muon(AdamW):
    """Muon (Jordan and others, 2024) for the matrices of the blocks, and AdamW for everything else, in one optimizer."""

    def __init__(
        self,
        learning_rate: float = 3e-3,
        muon_rate: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
    ):
        """Takes the settings: `learning_rate`, `betas` and `eps` are AdamW's, `muon_rate` is Muon's learning rate.

        Where `step` is given another learning rate, Muon's changes by the same factor.
        """
        super().__init__(learning_rate, betas, eps, weight_decay)
        rate = real("muon_rate", muon_rate, 0)
        if self.learning_rate == 0 or rate == 0:
            raise EngineError(f"expected a learning_rate and a muon_rate above 0, got {learning_rate} and {muon_rate}")
        self._muon_rate = rate / self.learning_rate


class GPT2:
    """A GPT-2: its parameters, gradients and threads. `tokenizer`, if it is known, turns text into tokens and back.

    Tokens are integers of shape (T,) or (B,T), arrays or lists, or text. Passes of one model wait for each other, whichever
    threads call them; different models work side by side. Results are the same bits for any number of threads.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        seed: int = 1337,
        dtype: str = "fp32",
        threads: int | None = None,
        tokenizer: Tokenizer | None = None,
    ):
        """Makes a model with GPT-2's random initialisation, `seed`.

        dtype "bf16": matrix products of rounded weights and activations, everything else float32. Raises ValueError if there
        is no such model, or no room for it.
        """
        self._create(config, dtype, threads, tokenizer)
        call("model_initialize", *self._where, integer("seed", seed, 0))

    def _create(self, config, dtype, threads, tokenizer):
        if not isinstance(config, ModelConfig):
            raise EngineError(f"config: expected a GPT2Config, got {config!r:.60}")
        if dtype not in DTYPES:
            raise EngineError(f"dtype: expected {' or '.join(DTYPES)}, got {dtype!r:.60}")
        if tokenizer is not None and not isinstance(tokenizer, Tokenizer):
            raise EngineError(f"tokenizer: expected a Tokenizer, got {tokenizer!r:.60}")
        if tokenizer is not None and tokenizer.vocab_size != config.vocab_size:
            raise EngineError(
                f"tokenizer: expected the model's vocabulary of {config.vocab_size}, found {tokenizer.vocab_size}; give the"
                " tokenizer that the model was trained with"
            )
        sizes = [integer(name, getattr(config, name), 1, 2**31 - 1) for name in SIZES]
        self.config = config
        self.dtype = dtype
        self.tokenizer = tokenizer
        self.threads = default_threads() if threads is None else integer("threads", threads, 1, 1024)
        self._lock = threading.RLock()
        self._bf16 = DTYPES.index(dtype)
        self._sizes = np.array(sizes, dtype=np.int64)
        # Room for passes is made when they come.
        self._room = (1, 1)
        settings = self._bf16, self.threads, 1, 1
        self._handle = Handle("model", address_of(self._sizes), *settings, more=(self._bf16,))

    @classmethod
    def from_pretrained(
        cls, name: AnyPath, *, dtype: str = "fp32", threads: int | None = None, tokenizer: Tokenizer | None = None
    ) -> "GPT2":
        """Loads a model with its tokenizer: "gpt2" to "gpt2-xl", the folder of a run, a checkpoint file of llm.c, or a folder
        that Hugging Face's or nanoGPT's `save` wrote.

        A published model is downloaded unless its file, gpt2_124M.bin and so on, is here. Raises Error if there is no such model.
        """
        from llm_mojo.run_files import newest_checkpoint
        from llm_mojo.weights import CONFIG_FILE, NANOGPT_FILE, PUBLISHED

        path = Path(os.fspath(name))
        if str(name) in PUBLISHED and not path.exists():
            path = Path(PUBLISHED[str(name)][-1])
            if not path.is_file():
                return cls._converted(str(name), dtype, threads, tokenizer)
        elif path.is_dir() and any((path / file).is_file() for file in (CONFIG_FILE, NANOGPT_FILE)):
            return cls._converted(str(path), dtype, threads, tokenizer)
        elif path.is_dir():
            path = newest_checkpoint(path)
        return cls._loaded(path, dtype, threads, tokenizer)

    @classmethod
    def _converted(cls, name, dtype, threads, tokenizer):
        """A model whose files have to be turned into a checkpoint before, which does not stay."""
        import argparse
        import contextlib
        import io

        from llm_mojo import weights

        folder = tempfile.mkdtemp(prefix="llm-mojo-")
        try:
            out = Path(folder) / "model.bin"
            with contextlib.redirect_stdout(io.StringIO()):
                weights.run(argparse.Namespace(model=name, out=out, dtype="float32", force=False))
            written = [*out.parent.glob("*_tokenizer.bin")]
            if tokenizer is None and written:
                tokenizer = Tokenizer(written[0])
            return cls._loaded(out, dtype, threads, tokenizer)
        finally:
            shutil.rmtree(folder)

    @classmethod
    def _loaded(cls, path, dtype, threads, tokenizer):
        from llm_mojo.run_files import expect_own_tokenizer

        address, size, keeper = bytes_argument(os.fsencode(path))
        sizes = np.zeros(5, dtype=np.int64)
        call("read_config", address, size, address_of(sizes))
        model = cls.__new__(cls)
        config = ModelConfig(*sizes.tolist())
        tokenizer = tokenizer or find_tokenizer(path, config.vocab_size)
        if isinstance(tokenizer, Tokenizer):
            expect_own_tokenizer(tokenizer.path, Path(path), tokenizer.sha256)
        model._create(config, dtype, threads, tokenizer)
        call("model_load", *model._where, address, size)
        del keeper
        return model

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name}={getattr(self.config, name)}" for name in SIZES)
        return f"GPT2({sizes}, dtype={self.dtype!r}, threads={self.threads})"

    # ----- parameters

    def parameters(self) -> dict[str, np.ndarray]:
        """The 16 tensors under llm.c's names, read-only and without a copy: they follow the model's steps.

        Linear weights are (L, out, in), wte (V, C).
        """
        return self._tensors(of_gradients=0)

    def gradients(self) -> dict[str, np.ndarray]:
        """The gradients of the last `backward`, read-only and without a copy, shaped as the parameters."""
        return self._tensors(of_gradients=1)

    def load_parameters(self, values: Mapping[str, Any]) -> None:
        """Sets parameters, any or all of them, from arrays of the shapes that `parameters` shows."""
        with self._lock:
            shapes = self._shapes()
            taken = {}
            for name, value in dict(values).items():
                if name not in shapes:
                    raise EngineError(f"load_parameters: expected names of {', '.join(shapes)}, got {name!r:.60}")
                try:
                    taken[name] = np.asarray(value, dtype=np.float32)
                except (TypeError, ValueError):
                    raise EngineError(
                        f"load_parameters: {name}: expected numbers, got {type(value).__name__}"
                    ) from None
                if taken[name].shape != shapes[name]:
                    raise EngineError(f"load_parameters: {name}: expected {shapes[name]}, found {taken[name].shape}")
            for name, array in self._tensors(of_gradients=0, writeable=True).items():
                if name in taken:
                    array[...] = taken[name]
            call("model_changed", *self._where)

    def save(self, path: AnyPath, *, dtype: str = "fp32") -> None:
        """Writes the model as a checkpoint of llm.c, with its tokenizer beside it as NAME_tokenizer.bin."""
        path = Path(path)
        if dtype not in DTYPES:
            raise EngineError(f"dtype: expected {' or '.join(DTYPES)}, got {dtype!r:.60}")
        with self._lock:
            address, size, keeper = bytes_argument(os.fsencode(path))
            call("model_save", *self._where, address, size, DTYPES.index(dtype))
            del keeper
        if self.tokenizer:
            self.tokenizer.save(path.with_name(f"{path.stem}_tokenizer.bin"))

    # ----- passes

    def logits(self, tokens: Any) -> np.ndarray:
        """What follows each position: (T,V), or (B,T,V) for a batch."""
        with self._lock:
            batch, shape = self._forward(tokens)
            output = np.empty((*shape, self.config.vocab_size), dtype=np.float32)
            call("model_logits", *self._where, 0, batch.size, address_of(output), output.size)
            return output

    def loss(self, x: Any, y: Any) -> float:
        """The mean cross entropy of tokens x against what follows them, y."""
        with self._lock:
            targets = self._forward_against(x, y)
            loss = np.zeros(1, dtype=np.float32)
            call("model_loss", *self._where, address_of(targets), targets.size, address_of(loss))
            return float(loss[0])

    def losses(self, x: Any, y: Any) -> np.ndarray:
        """The cross entropy at each position, shaped as y; 0 where y is -1, which leaves a position out."""
        with self._lock:
            targets = self._forward_against(x, y, least=-1)
            losses = np.empty(targets.shape, dtype=np.float32)
            call("model_losses", *self._where, address_of(targets), address_of(losses), losses.size)
            return losses

    def log_probabilities(self, tokens: Any, count: int = 0) -> "list[tuple[float, Alternatives]]":
        """For each token of a text but the first: its log-probability after those before it, and the `count` likeliest
        tokens of its place with theirs.
        """
        from llm_mojo.generation import log_probabilities_of

        count = integer("count", count, 0, self.config.vocab_size)
        with self._lock:
            batch, shape = self._forward(tokens)
            if len(shape) != 1:
                raise EngineError(f"tokens: expected one text of shape (T,), found {shape}")
            found = []
            rows = np.empty((min(ROWS, batch.size), self.config.vocab_size), dtype=np.float32)
            for first in range(0, batch.size - 1, ROWS):
                block = rows[: min(ROWS, batch.size - 1 - first)]
                call("model_logits", *self._where, first, len(block), address_of(block), block.size)
                for row, token in zip(block, batch[0, first + 1 :]):
                    found.append(log_probabilities_of(row, int(token), count))
            return found

    def backward(self, x: Any, y: Any, *, accumulate: bool = False, weight: float = 1.0) -> float:
        """Computes the gradients of weight * loss, or adds them to what is there with `accumulate`; returns the loss.

        A batch in n pieces is n calls with weight 1/n, all but the first with `accumulate`.
        """
        with self._lock:
            targets = self._forward_against(x, y)
            loss = np.zeros(1, dtype=np.float32)
            how = int(bool(accumulate)), real("weight", weight)
            call("model_backward", *self._where, address_of(targets), targets.size, *how, address_of(loss))
            return float(loss[0])

    def gradient_norm(self) -> float:
        """The norm of the gradient over all tensors."""
        with self._lock:
            norm = np.zeros(1, dtype=np.float32)
            call("model_gradient_norm", *self._where, address_of(norm))
            return float(norm[0])

    def step(self, optimizer: AdamW, *, learning_rate: float | None = None, grad_clip: float = 0) -> float:
        """Has the optimizer change the parameters by the gradients of `backward`, and returns their norm.

        `learning_rate` in place of the optimizer's; a gradient longer than `grad_clip` is scaled down to it (0: any).
        """
        if not isinstance(optimizer, AdamW):
            raise EngineError(f"step: expected an optimizer, got {optimizer!r:.60}")
        rate = optimizer.learning_rate if learning_rate is None else real("learning_rate", learning_rate, 0)
        limit = real("grad_clip", grad_clip, 0)
        with self._lock:
            scale = 1.0
            if limit > 0 and (norm := self.gradient_norm()) > limit:
                scale = float(np.float32(limit) / np.float32(norm))
                optimizer._step(self, rate, scale)
                return norm
            return optimizer._step(self, rate, scale)

    # ----- looking inside

    def hidden_states(self, tokens: Any) -> np.ndarray:
        """The residual stream: (L+1,T,C), or (L+1,B,T,C) for a batch; what goes into each block, and out of the last."""
        with self._lock:
            _, shape = self._forward(tokens)
            output = np.empty((self.config.num_layers + 1, *shape, self.config.channels), dtype=np.float32)
            for l in range(len(output)):
                call("model_hidden_state", *self._where, l, address_of(output[l]), output[l].size)
            return output

    def attention(self, tokens: Any, layer: int) -> np.ndarray:
        """Which positions each one looks at in a block: probabilities (NH,T,T), or (B,NH,T,T) for a batch."""
        layer = integer("layer", layer, 0, self.config.num_layers - 1)
        with self._lock:
            batch, shape = self._forward(tokens)
            B, T = batch.shape
            output = np.empty((B, self.config.num_heads, T, T), dtype=np.float32)
            for b in range(B):
                call("model_attention", *self._where, b, layer, address_of(output[b]), output[b].size)
            return output if len(shape) == 2 else output[0]

    # ----- text

    def generate(self, prompts: Any = "", max_tokens: int = 100, **settings: Any) -> Any:
        """Continues one prompt or several, side by side: see `llm_mojo.generation.generate`."""
        from llm_mojo.generation import generate

        return generate(self, prompts, max_tokens, **settings)

    def batch(self, texts: int = 8, context: int | None = None) -> "Batch":
        """Room for texts that come and go while others are being written: see `llm_mojo.generation.Batch`."""
        from llm_mojo.generation import Batch

        return Batch(self, texts, context)

    # ----- behind

    @property
    def _where(self):
        return self._handle.address, self._bf16

    def _shapes(self):
        return parameter_shapes(self.config) | {"wte": (self.config.vocab_size, self.config.channels)}

    def _tensors(self, of_gradients, writeable=False):
        tensors = {}
        for number, (name, shape) in enumerate(self._shapes().items()):
            address = call_surely("model_tensor", *self._where, of_gradients, number)
            tensors[name] = view(address, shape, self._handle, writeable)
        return tensors

    def _tokens(self, name, tokens, least=0):
        if isinstance(tokens, (str, bytes)):
            if self.tokenizer is None:
                raise EngineError(f"{name}: expected token ids, because this model has no tokenizer, got text")
            tokens = self.tokenizer.encode(tokens, allow_special=True) or [self.tokenizer.first_token]
        return token_array(name, tokens, self.config.vocab_size, least)

    def _forward(self, tokens):
        """Runs a pass; returns the tokens (B,T), and their shape as they came."""
        array = self._tokens("tokens", tokens)
        batch = array.reshape(-1, array.shape[-1])
        B, T = batch.shape
        if T > self.config.max_seq_len:
            raise EngineError(f"tokens: expected at most {self.config.max_seq_len} (the model's context), found T={T}")
        rows, longest = self._room
        if B * T > rows * longest or T > longest:
            longest = max(T, longest)
            rows = -(-max(B * T, self._room[0] * self._room[1]) // longest)
            call("model_plan", *self._where, rows, longest)
            self._room = rows, longest
        call("model_forward", *self._where, address_of(batch), B, T)
        return batch, array.shape

    def _forward_against(self, x, y, least=0):
        inputs = self._tokens("x", x)
        targets = self._tokens("y", y, least)
        if inputs.shape != targets.shape:
            raise EngineError(f"y: expected a target for each token of x, {inputs.shape}, found {targets.shape}")
        self._forward(inputs)
        return targets


__all__ = ["AdamW", "Error", "GPT2", "GPT2Config", "Muon", "Tokenizer"]
