"""A GPT-2 that reads a text once and then continues it token by token, from the keys and values that it keeps.

The choreography is that of `gpt2.mojo`'s forward pass, for inference: one layer's activations at a time, and logits for
the last position only. A text of many positions goes through the training kernels; a step, which has one position for
each text, is bound by reading the weights, and uses `matvec` and the cache instead.
"""

from llm.base.memory import Arena, Tensor, aligned_bytes
from llm.cpu.attention import attention_forward, attention_workspace_size
from llm.cpu.cached_attention import add_tile_values, append_position, softmax_numerators, tile_scores
from llm.cpu.gemm import HAS_BF16_DOT, Bias, BiasGelu, BiasResidual, Epilogue, Plain, gemm_workspace_size
from llm.cpu.layernorm import layernorm_forward
from llm.cpu.linear import linear_forward
from llm.cpu.matvec import matvec
from llm.cpu.simd.conversion import convert
from llm.cpu.simd.tile import BLOCK, load_tile, load_tile_transposed, padded, rows_from
from llm.cpu.threads.crew import Crew, Job, Team, share
from llm.model.config import GPT2Config
from llm.model.kv_cache import KVCache, Pages
from llm.model.tensors import (
    ATTPROJB,
    ATTPROJW,
    FCB,
    FCPROJB,
    FCPROJW,
    FCW,
    LN1B,
    LN1W,
    LN2B,
    LN2W,
    LNFB,
    LNFW,
    NUM_TENSORS,
    QKVB,
    QKVW,
    WPE,
    WTE,
    ParameterTensors,
)

comptime F32 = DType.float32
comptime I32 = DType.int32
comptime _FEW_ROWS = 8
"""Up to so many positions reading the weights is what takes the time, and `matvec` is faster than a gemm."""


struct Decoder[dtype: DType](Movable):
    """Texts that share a beginning, and a model that reads and continues them.

    Weights are `dtype`, all else is float32; only where many positions are read at once, and the processor has dot products
    of bfloat16, activations are rounded like such weights. Results do not depend on the number of threads, nor a text's on
    how many others there are.
    """

    var config: GPT2Config
    var context: Int
    """Longest text."""
    var cache: KVCache
    var logits: Tensor[F32]
    """(texts of the last step, V): what follows each of them."""
    var _tensors: List[Tensor[Self.dtype]]
    var _vectors: List[Tensor[F32]]
    var _s: _Scratch
    var _args: _Arguments
    var _crew: Crew
    var _arena: Arena

    def __init__(
        out self, config: GPT2Config, params: ParameterTensors[Self.dtype], threads: Int, *, texts: Int, context: Int
    ) raises:
        """Makes a decoder for so many texts of at most `context` tokens; `params` must outlive it.

        Raises:
            If the model has no such context, or the system has no room.
        """
        if texts < 1 or context < 1 or context > config.max_seq_len:
            raise Error(
                t"decoder: expected at least one text and a context of 1 to {config.max_seq_len}, got {texts} and"
                t" {context}"
            )
        self.config = config.copy()
        self.context = context
        self.cache = KVCache(config, texts, context)
        # Biases and layernorms are float32 whatever the matrices are: they are not worth the bytes.
        self._arena = Arena(_Scratch.bytes(config, context, texts, threads) + _vector_bytes(config))
        self._tensors = List[Tensor[Self.dtype]](capacity=NUM_TENSORS)
        self._vectors = List[Tensor[F32]](capacity=NUM_TENSORS)
        for i in range(NUM_TENSORS):
            var tensor = params[i]
            var is_vector = not params.specs[i].is_matrix()
            var vector = self._arena.carve[F32](tensor.size if is_vector else 0)
            for j in range(vector.size):
                vector[j] = tensor[j].cast[F32]()
            self._tensors.append(tensor)
            self._vectors.append(vector)
        self._s = _Scratch(self._arena, config, context, texts, threads)
        self.logits = self._s.logits
        self._args = _Arguments(List[Int32](), List[Int](), 0)
        self._crew = Crew(threads)

    # ----- what callers do

    def read(mut self, tokens: List[Int32]) raises:
        """Forgets all texts and reads the beginning that the next ones share; it may be empty.

        Raises:
            If it is longer than the context, or has a token that the model does not know.
        """
        self.cache.shared_length = 0
        self.cache.own_length = 0
        self._read(self.cache.shared, tokens)
        self.cache.shared_length = len(tokens)

    def read_apart(mut self, tokens: List[List[Int32]], texts: List[Int]) raises:
        """Forgets all texts and reads beginnings of one length that are not shared, tokens[i] for texts[i].

        Raises:
            If they are longer than the context, differ in length, or have a token that the model does not know.
        """
        self.cache.shared_length = 0
        self.cache.own_length = 0
        for i in range(len(texts)):
            if len(tokens[i]) != len(tokens[0]):
                raise Error(t"decode: texts of {len(tokens[0])} and {len(tokens[i])} tokens side by side")
            self._read(self.cache.own[texts[i]], tokens[i])
        self.cache.own_length = len(tokens[0])

    def step(mut self, tokens: List[Int32], texts: List[Int]) raises:
        """Appends tokens[i] to texts[i] and computes the logits of what follows. Texts that are left out end.

        Raises:
            If the context is full, or a token is not in the vocabulary.
        """
        if self.cache.length() >= self.context:
            raise Error(t"decode: the context of {self.context} tokens is full")
        self._check_tokens(tokens)
        self._args = _Arguments(tokens.copy(), texts.copy(), self.cache.length())
        self._crew.run(_step_job[Self.dtype], Int(Pointer(to=self)))
        self.logits = self._s.logits.slice(0, len(tokens) * self.config.vocab_size)
        self.cache.own_length += 1

    def _read(mut self, pages: Pages, tokens: List[Int32]) raises:
        if len(tokens) > self.context:
            raise Error(t"decode: {len(tokens)} tokens do not fit into a context of {self.context}")
        self._check_tokens(tokens)
        if len(tokens) > 0:
            self._args = _Arguments(tokens.copy(), List[Int](), 0)
            self._args.pages = pages
            self._crew.run(_read_job[Self.dtype], Int(Pointer(to=self)))

    def _check_tokens(self, tokens: List[Int32]) raises:
        for i in range(len(tokens)):
            if tokens[i] < 0 or Int(tokens[i]) >= self.config.vocab_size:
                raise Error(
                    t"decode: token {tokens[i]} is not in this model's vocabulary of {self.config.vocab_size}; use the"
                    t" tokenizer that the model was trained with"
                )

    # ----- the passes, in every thread

    def _step_pass(self, team: Team):
        var rows = len(self._args.tokens)
        var C = self.config.channels
        self._embed(team, rows, 0)
        for l in range(self.config.num_layers):
            self._attention_input[F32](team, l, rows)
            self._cached_attention(team, l)
            self._finish_block[F32](team, l, rows)
        self._layernorm(team, self._s.norm, self._s.x, LNFW, LNFB, 0, rows)
        matvec(team, self._s.logits, self._s.norm, self._tensors[WTE], rows, C, self.config.vocab_size, Plain())

    def _read_pass(self, team: Team):
        # Without dot products of bfloat16 a gemm would widen the weights once for each block of rows, and be slower.
        comptime acts = Self.dtype if HAS_BF16_DOT else F32
        if len(self._args.tokens) <= _FEW_ROWS:
            self._read_with[F32](team)
        else:
            self._read_with[acts](team)

    def _read_with[acts: DType](self, team: Team):
        """Reads a text with activations of this type between the residual stream and the products."""
        var rows = len(self._args.tokens)
        var C = self.config.channels
        var NH = self.config.num_heads
        ref s = self._s
        self._embed(team, rows, 1)
        for l in range(self.config.num_layers):
            self._attention_input[acts](team, l, rows)
            self._fill_pages[acts](team, l, rows)
            # Of the last block only keys and values are of use to the positions that follow.
            if l + 1 < self.config.num_layers:
                var qkv, attention = _as[acts](s.qkv), _as[acts](s.attention)
                attention_forward(team, s.attention_workspace, attention, s.logsumexp, qkv, 1, rows, C, NH)
                self._finish_block[acts](team, l, rows)

    def _embed(self, team: Team, rows: Int, stride: Int):
        """Computes x = wte[token] + wpe[position], positions `stride` apart."""
        var C = self.config.channels

        def body(member: Int) {imm}:
            var lo, hi = share(rows, team.size, member)
            for row in range(lo, hi):
                var token = self._tensors[WTE].slice(Int(self._args.tokens[row]) * C, C)
                var position = self._tensors[WPE].slice((self._args.position + stride * row) * C, C)
                for c in range(C):
                    self._s.x[row * C + c] = token[c].cast[F32]() + position[c].cast[F32]()

        team.run(body, "embedding")

    def _attention_input[acts: DType](self, team: Team, l: Int, rows: Int):
        var C = self.config.channels
        var norm, qkv = _as[acts](self._s.norm), _as[acts](self._s.qkv)
        self._layernorm(team, norm, self._s.x, LN1W, LN1B, l, rows)
        self._linear(team, qkv, norm, QKVW, l, rows, C, 3 * C, Bias(self._vector(QKVB, l)))

    def _finish_block[acts: DType](self, team: Team, l: Int, rows: Int):
        ref s = self._s
        var C = self.config.channels
        var norm, gelu = _as[acts](s.norm), _as[acts](s.gelu)
        var attproj_residual = BiasResidual(self._vector(ATTPROJB, l), s.x, C)
        self._linear(team, s.x_mid, _as[acts](s.attention), ATTPROJW, l, rows, C, C, attproj_residual)
        self._layernorm(team, norm, s.x_mid, LN2W, LN2B, l, rows)
        # No backward pass needs the input of GELU: it is written where the output then goes.
        var fc_gelu = BiasGelu(self._vector(FCB, l), gelu, 4 * C)
        self._linear(team, gelu, norm, FCW, l, rows, C, 4 * C, fc_gelu)
        var fcproj_residual = BiasResidual(self._vector(FCPROJB, l), s.x_mid, C)
        self._linear(team, s.x, gelu, FCPROJW, l, rows, 4 * C, C, fcproj_residual)

    def _layernorm[
        acts: DType, //
    ](self, team: Team, output: Tensor[acts], inp: Tensor[F32], weight: Int, bias: Int, l: Int, rows: Int):
        ref s = self._s
        layernorm_forward(
            team,
            output,
            s.mean,
            s.rstd,
            inp,
            self._vector(weight, l),
            self._vector(bias, l),
            rows,
            self.config.channels,
        )

    def _linear[
        acts: DType, out_dtype: DType, E: Epilogue, //
    ](
        self,
        team: Team,
        output: Tensor[out_dtype],
        inp: Tensor[acts],
        weight: Int,
        l: Int,
        rows: Int,
        C: Int,
        OC: Int,
        epilogue: E,
    ):
        """Computes output = epilogue(inp @ weight^T) with the kernel that suits the number of rows."""
        var matrix = self._tensors[weight].slice(l * OC * C, OC * C)
        comptime if acts == F32:
            # Positions read at once, or one of each text: the same text has to get the same bits beside any others.
            if len(self._args.texts) > 0 or rows <= _FEW_ROWS:
                matvec(team, rebind[Tensor[F32]](output), rebind[Tensor[F32]](inp), matrix, rows, C, OC, epilogue)
                return
        comptime if acts == Self.dtype:
            var same = rebind[Tensor[acts]](matrix)
            linear_forward(team, self._s.gemm_workspace, output, inp, same, rows, C, OC, epilogue)
        else:
            var wide = self._s.wide.slice(0, OC * C)
            convert(team, wide, matrix)
            linear_forward(team, self._s.gemm_workspace, output, rebind[Tensor[F32]](inp), wide, rows, C, OC, epilogue)

    def _fill_pages[acts: DType](self, team: Team, l: Int, rows: Int):
        """Copies the keys and values of all positions into pages."""
        var qkv = _as[acts](self._s.qkv)
        var C = self.config.channels
        var NH = self.config.num_heads
        var HS = self.config.head_size()
        var num_pages = (rows + BLOCK - 1) // BLOCK
        var pages = self._args.pages.value()

        def body(member: Int) {imm}:
            var lo, hi = share(num_pages * NH, team.size, member)
            for item in range(lo, hi):
                var page, h = divmod(item, NH)
                var first = page * BLOCK
                var count = min(BLOCK, rows - first)
                var keys = rows_from(qkv, first * 3 * C + C + h * HS, 3 * C, count, HS)
                var values = rows_from(qkv, first * 3 * C + 2 * C + h * HS, 3 * C, count, HS)
                load_tile_transposed(pages.keys(page, l, h), BLOCK, keys, 3 * C, count, HS)
                load_tile(pages.values(page, l, h), values, 3 * C, count, HS)

        team.run(body, "fill_pages")

    def _cached_attention(self, team: Team, l: Int):
        """Appends the new position of each text to its pages, and computes what each head makes of them."""
        var C = self.config.channels
        var NH = self.config.num_heads
        var HS = self.config.head_size()
        var HSp = padded(HS)

        def body(member: Int) {imm}:
            var lo, hi = share(len(self._args.texts) * NH, team.size, member)
            var scratch = self._s.heads.slice(member * self._s.head_size, self._s.head_size)
            for item in range(lo, hi):
                var row, h = divmod(item, NH)
                var own = self.cache.own[self._args.texts[row]]
                var query = self._s.qkv.slice(row * 3 * C + h * HS, HS)
                var key = self._s.qkv.slice(row * 3 * C + C + h * HS, HS)
                var value = self._s.qkv.slice(row * 3 * C + 2 * C + h * HS, HS)
                var page, slot = divmod(self.cache.own_length, BLOCK)
                append_position(own.keys(page, l, h), own.values(page, l, h), slot, key, value)

                var sums = scratch.slice(0, HSp)
                var scores = scratch.slice(HSp, scratch.size - HSp)
                var used = _scores(scores, query, self.cache.shared, self.cache.shared_length, l, h)
                var rest = scores.slice(used, scores.size - used)
                var used_own = _scores(rest, query, own, self.cache.own_length + 1, l, h)
                var denominator = softmax_numerators(scores.slice(0, used + used_own))
                sums.fill(0)
                _add_values(sums, scores, self.cache.shared, self.cache.shared_length, l, h)
                _add_values(sums, rest, own, self.cache.own_length + 1, l, h)
                for c in range(HS):
                    self._s.attention[row * C + h * HS + c] = sums[c] / denominator

        team.run(body, "cached_attention")

    @always_inline
    def _vector(self, tensor: Int, l: Int) -> Tensor[F32]:
        """Views layer l of a bias or layernorm vector."""
        var whole = self._vectors[tensor]
        var size = whole.size // (1 if tensor >= LNFW else self.config.num_layers)
        return whole.slice(l * size, size)


def _scores(scores: Tensor[F32], query: Tensor[F32], pages: Pages, length: Int, l: Int, h: Int) -> Int:
    """Computes the scores of a text's first positions, whole pages of them, and returns how many places they take."""
    for first in range(0, length, BLOCK):
        tile_scores(scores.slice(first, BLOCK), query, pages.keys(first // BLOCK, l, h), length - first)
    return (length + BLOCK - 1) // BLOCK * BLOCK


def _add_values(sums: Tensor[F32], weights: Tensor[F32], pages: Pages, length: Int, l: Int, h: Int):
    """Adds the values of a text's first positions, weighted."""
    for first in range(0, length, BLOCK):
        var visible = min(BLOCK, length - first)
        add_tile_values(sums, weights.slice(first, visible), pages.values(first // BLOCK, l, h), visible)


# ----- memory and jobs


struct _Scratch(Copyable, Movable):
    """Activations of one layer, used again by the next; rows are positions of one text, or texts of a step."""

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
    var head_size: Int
    """Scalars that a thread needs for a head: its output, and scores for two runs of whole pages."""
    var heads: Tensor[F32]
    var attention_workspace: Tensor[F32]
    var gemm_workspace: Tensor[F32]

    def __init__(out self, mut arena: Arena, config: GPT2Config, context: Int, texts: Int, threads: Int) raises:
        var rows = max(context, texts)
        var C = config.channels
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
        self.head_size = _head_size(config, context)
        self.heads = arena.carve[F32](threads * self.head_size)
        self.attention_workspace = arena.carve[F32](attention_workspace_size(context, config.head_size(), threads))
        self.gemm_workspace = arena.carve[F32](gemm_workspace_size(threads))

    @staticmethod
    def bytes(config: GPT2Config, context: Int, texts: Int, threads: Int) -> Int:
        """Counts what the arena has to hold."""
        var rows = max(context, texts)
        var C = config.channels
        var scalars = rows * (11 * C + 2 + config.num_heads) + texts * config.vocab_size + 4 * C * C
        scalars += threads * _head_size(config, context) + gemm_workspace_size(threads)
        scalars += attention_workspace_size(context, config.head_size(), threads)
        return aligned_bytes[F32](scalars) + 14 * aligned_bytes[F32](1)


@always_inline
def _as[dtype: DType](tensor: Tensor[F32]) -> Tensor[dtype]:
    """Views the room of float32 scalars as room for as many scalars of a type that is no wider."""
    return Tensor[dtype](Tensor[dtype].Ptr(unsafe_from_address=Int(tensor.ptr)), tensor.size)


def _head_size(config: GPT2Config, context: Int) -> Int:
    return padded(config.head_size()) + context + 2 * BLOCK


def _vector_bytes(config: GPT2Config) -> Int:
    var scalars = config.num_layers * 13 * config.channels + 2 * config.channels
    return aligned_bytes[F32](scalars) + NUM_TENSORS * aligned_bytes[F32](1)


struct _Arguments(Movable):
    """Arguments of the pass under way, where every thread finds them."""

    var tokens: List[Int32]
    var texts: List[Int]
    """The text that each token belongs to, in a step; empty when one text is read."""
    var position: Int
    """Of the first token."""
    var pages: Optional[Pages]
    """Where a text that is read goes."""

    def __init__(out self, var tokens: List[Int32], var texts: List[Int], position: Int):
        self.tokens = tokens^
        self.texts = texts^
        self.position = position
        self.pages = None


@always_inline
def _decoder[dtype: DType](context: Int) -> ref[MutUntrackedOrigin] Decoder[dtype]:
    return Pointer[Decoder[dtype], MutUntrackedOrigin](unsafe_from_address=context)[]


def _step_job[dtype: DType](context: Int, team: Team):
    _decoder[dtype](context)._step_pass(team)


def _read_job[dtype: DType](context: Int, team: Team):
    _decoder[dtype](context)._read_pass(team)
