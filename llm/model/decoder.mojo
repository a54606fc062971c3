"""A GPT-2 that reads texts and continues them token by token, from the keys and values that it keeps.

One block's activations exist at a time, and logits for the last position only. A prompt of many positions goes through the
kernels of training; a step, which has one position for each text, is bound by reading the weights.
"""

from llm.base.memory import Arena, Tensor
from llm.cpu.attention import attention_workspace_size
from llm.cpu.cached_attention import CachedText, Pages, cached_attention_workspace_size
from llm.cpu.gemm import HAS_BF16_DOT, Plain, check_product, gemm_workspace_size
from llm.cpu.threads.crew import Crew, Team
from llm.model.config import GPT2Config
from llm.model.forward import (
    BlockActivations,
    CachedAttention,
    CachingAttention,
    ForwardWeights,
    Products,
    embed,
    final_layernorm,
    forward_block,
)
from llm.model.kv_cache import KVCache
from llm.model.tensors import WPE, WTE, ParameterTensors, parameter_specs

comptime F32 = DType.float32
comptime I32 = DType.int32
comptime _FEW_ROWS = 8
"""Up to so many positions of a prompt reading the weights is what takes the time."""


struct Decoder[dtype: DType](Movable):
    """Texts under way, each with its own position, and a model that reads and continues them.

    Weights are `dtype`, all else is float32; only where many positions are read at once, and the processor has dot products
    of bfloat16, activations are rounded like such weights. Results do not depend on the number of threads, nor a text's on
    what runs beside it.
    """

    var config: GPT2Config
    var context: Int
    """Longest text."""
    var num_texts: Int
    """Texts that there is room for."""
    var logits: Tensor[F32]
    """(texts of the last step, V): what follows each of them."""
    var _cache: KVCache
    var _weights: ForwardWeights[Self.dtype, Self.dtype]
    var _s: _Scratch
    var _crew: Crew
    var _arena: Arena

    def __init__(
        out self, config: GPT2Config, params: ParameterTensors[Self.dtype], threads: Int, *, texts: Int, context: Int
    ) raises:
        """Makes a decoder for so many texts of at most `context` tokens; `params` must outlive it.

        Raises:
            If the model has no such context or is too wide for its type, or the system has no room.
        """
        if texts < 1 or context < 1 or context > config.max_seq_len:
            raise Error(
                t"decoder: expected at least one text and a context of 1 to {config.max_seq_len}, got {texts} and"
                t" {context}"
            )
        check_product[Self.dtype, Self.dtype](config.channels)
        self.config = config.copy()
        self.context = context
        self.num_texts = texts
        self._cache = KVCache(config, texts, context)
        self._arena = Arena(scratch_bytes(config, context, texts, threads))
        self._s = _Scratch(self._arena, config, context, texts, threads)
        # Biases and layernorms are float32 whatever the matrices are: they are not worth the bytes.
        var vectors = self._s.vectors.copy()
        for i in range(len(vectors)):
            for j in range(vectors[i].size):
                vectors[i][j] = params[i][j].cast[F32]()
        self._weights = ForwardWeights[Self.dtype, Self.dtype](
            config, wte=params[WTE], wpe=params[WPE], matrices=params.tensors(), vectors=vectors^
        )
        self.logits = self._s.logits
        self._crew = Crew(threads)

    def length(self, text: Int) -> Int:
        """Counts the positions that a text has."""
        return self._cache.length(text)

    def begin(mut self, text: Int, tokens: List[Int32]) raises:
        """Forgets a text and reads the beginning of the next one in its place; it may be empty.

        Raises:
            If it is longer than the context, has a token that the model does not know, or others share the old beginning.
        """
        self._check_prompt(text, tokens)
        self._read(self._cache.begin(text, len(tokens)), tokens)

    def share(mut self, text: Int, other: Int) raises:
        """Lets a text begin as another one did, from the keys and values that are there.

        Raises:
            If there are no such texts, or others share the text's old beginning.
        """
        self._check_text(text)
        self._check_text(other)
        if text != other:
            self._cache.share(text, other)

    def restart(mut self, text: Int, tokens: List[Int32]) raises:
        """Forgets a text and reads what it goes on from, which no other text can share.

        Raises:
            If it is longer than the context, has a token that the model does not know, or others share the old beginning.
        """
        self._check_prompt(text, tokens)
        self._read(self._cache.restart(text, len(tokens)), tokens)

    def end(mut self, text: Int) raises:
        """Forgets a text.

        Raises:
            If there is no such text.
        """
        self._check_text(text)
        self._cache.end(text)

    def step(mut self, tokens: List[Int32], texts: List[Int]) raises:
        """Appends tokens[i] to texts[i] and computes the logits of what follows. The other texts stay as they are.

        Raises:
            If a text is full or named twice, or a token is not in the vocabulary.
        """
        if len(tokens) == 0 or len(tokens) != len(texts):
            raise Error(t"decode: expected a token for each of at least one text, got {len(tokens)} and {len(texts)}")
        self._check_tokens(tokens)
        var views = List[CachedText](capacity=len(texts))
        for i, text in enumerate(texts):
            self._check_text(text)
            if text in texts[:i]:
                raise Error(t"decode: text {text} is named twice in one step")
            if self._cache.length(text) >= self.context:
                raise Error(t"decode: the context of {self.context} tokens is full")
            self._s.tokens[i] = tokens[i]
            self._s.positions[i] = Int32(self._cache.length(text))
            views.append(self._cache.view(text))
        var attention = CachedAttention(self._s.heads, views^)
        var rows = len(tokens)

        def one_pass(team: Team) {imm}:
            self._step(team, attention, rows)

        self._crew.run(one_pass)
        self.logits = self._s.logits.slice(0, rows * self.config.vocab_size)
        for text in texts:
            self._cache.advance(text)

    def _read(mut self, pages: Pages, tokens: List[Int32]) raises:
        var rows = len(tokens)
        if rows == 0:
            return
        for i in range(rows):
            self._s.tokens[i] = tokens[i]
            self._s.positions[i] = Int32(i)

        def one_pass(team: Team) {imm}:
            # Without dot products of bfloat16, activations that are rounded too would make nothing faster.
            comptime acts = Self.dtype if HAS_BF16_DOT else F32
            if rows <= _FEW_ROWS:
                self._read_with[F32](team, pages, rows)
            else:
                self._read_with[acts](team, pages, rows)

        self._crew.run(one_pass)

    # ----- the passes, in every thread

    def _step(self, team: Team, attention: CachedAttention, rows: Int):
        ref s = self._s
        var C = self.config.channels
        var products = Products[F32, Self.dtype, training=False](s.gemm_workspace, s.wide, few=True)
        embed(team, self._weights, s.x, s.tokens.slice(0, rows), s.positions.slice(0, rows), C)
        for l in range(self.config.num_layers):
            forward_block(team, self.config, self._weights, l, rows, s.block[F32](), attention, products)
        final_layernorm(team, self._weights, s.norm, s.mean, s.rstd, s.x, rows, C)
        products.linear(team, s.logits, s.norm, self._weights.matrix(WTE, 0), rows, C, self.config.vocab_size, Plain())

    def _read_with[acts: DType](self, team: Team, pages: Pages, rows: Int):
        """Reads a text with activations of this type between the residual stream and the products."""
        ref s = self._s
        var last = self.config.num_layers - 1
        var attention = CachingAttention(s.attention_workspace, s.logsumexp, pages, rows, last)
        var products = Products[acts, Self.dtype, training=False](s.gemm_workspace, s.wide, few=rows <= _FEW_ROWS)
        embed(team, self._weights, s.x, s.tokens.slice(0, rows), s.positions.slice(0, rows), self.config.channels)
        for l in range(self.config.num_layers):
            forward_block(team, self.config, self._weights, l, rows, s.block[acts](), attention, products)

    # ----- checks

    def _check_text(self, text: Int) raises:
        if text < 0 or text >= self.num_texts:
            raise Error(t"decode: expected a text from 0 to {self.num_texts - 1}, got {text}")

    def _check_prompt(self, text: Int, tokens: List[Int32]) raises:
        self._check_text(text)
        if len(tokens) > self.context:
            raise Error(t"decode: {len(tokens)} tokens do not fit into a context of {self.context}")
        self._check_tokens(tokens)

    def _check_tokens(self, tokens: List[Int32]) raises:
        for i in range(len(tokens)):
            if tokens[i] < 0 or Int(tokens[i]) >= self.config.vocab_size:
                raise Error(
                    t"decode: token {tokens[i]} is not in this model's vocabulary of {self.config.vocab_size}; use the"
                    t" tokenizer that the model was trained with"
                )


struct _Scratch(Copyable, Movable):
    """Activations of one block, used again by the next; rows are positions of one text, or texts of a step."""

    var tokens: Tensor[I32]
    """(rows)."""
    var positions: Tensor[I32]
    """(rows)."""
    var x: Tensor[F32]
    """(rows, C): the residual stream."""
    var x_mid: Tensor[F32]
    var norm: Tensor[F32]
    var qkv: Tensor[F32]
    var attention: Tensor[F32]
    var gelu: Tensor[F32]
    """(rows, 4C)."""
    var mean: Tensor[F32]
    var rstd: Tensor[F32]
    var logsumexp: Tensor[F32]
    var logits: Tensor[F32]
    """(texts, V)."""
    var wide: Tensor[F32]
    """(4C, C): a matrix in float32; memory only where it is used."""
    var vectors: List[Tensor[F32]]
    """Biases and layernorm vectors, by number of the tensor; others are empty."""
    var heads: Tensor[F32]
    var attention_workspace: Tensor[F32]
    var gemm_workspace: Tensor[F32]

    def __init__(out self, mut arena: Arena, config: GPT2Config, context: Int, texts: Int, threads: Int) raises:
        var rows = max(context, texts)
        var C = config.channels
        var HS = config.head_size()
        self.tokens = arena.carve[I32](rows)
        self.positions = arena.carve[I32](rows)
        self.x = arena.carve[F32](rows * C)
        self.x_mid = arena.carve[F32](rows * C)
        self.norm = arena.carve[F32](rows * C)
        self.qkv = arena.carve[F32](rows * 3 * C)
        self.attention = arena.carve[F32](rows * C)
        self.gelu = arena.carve[F32](rows * 4 * C)
        self.mean = arena.carve[F32](rows)
        self.rstd = arena.carve[F32](rows)
        self.logsumexp = arena.carve[F32](rows * config.num_heads)
        self.logits = arena.carve[F32](texts * config.vocab_size)
        self.wide = arena.carve[F32](4 * C * C)
        self.vectors = List[Tensor[F32]]()
        for ref spec in parameter_specs(config):
            self.vectors.append(arena.carve[F32](0 if spec.is_matrix() else spec.size()))
        self.heads = arena.carve[F32](cached_attention_workspace_size(context, HS, threads))
        self.attention_workspace = arena.carve[F32](attention_workspace_size(context, HS, threads))
        self.gemm_workspace = arena.carve[F32](gemm_workspace_size(threads))

    def block[acts: DType](self) -> BlockActivations[acts]:
        """Views the activations of any block. No backward pass needs the input of GELU: its output takes its place."""
        var gelu = _as[acts](self.gelu)
        return BlockActivations[acts](
            x=self.x,
            x_mid=self.x_mid,
            x_out=self.x,
            norm=_as[acts](self.norm),
            qkv=_as[acts](self.qkv),
            attention=_as[acts](self.attention),
            fc=gelu,
            gelu=gelu,
            ln1_mean=self.mean,
            ln1_rstd=self.rstd,
            ln2_mean=self.mean,
            ln2_rstd=self.rstd,
        )


def scratch_bytes(config: GPT2Config, context: Int, texts: Int, threads: Int) raises -> Int:
    """Counts the bytes that a decoder reserves beside parameters and cache."""
    var counting = Arena.counting()
    _ = _Scratch(counting, config, context, texts, threads)
    return counting.used


@always_inline
def _as[dtype: DType](tensor: Tensor[F32]) -> Tensor[dtype]:
    """Views the room of float32 scalars as room for as many scalars of a type that is no wider."""
    return Tensor[dtype](Tensor[dtype].Ptr(unsafe_from_address=Int(tensor.ptr)), tensor.size)
