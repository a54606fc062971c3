"""The tensors of a GPT-2, one list that load, save, initialisation, AdamW and the tests all walk."""

from llm.base.memory import Arena, Tensor, aligned_bytes
from llm.model.config import GPT2Config

comptime F32 = DType.float32
comptime NUM_TENSORS = 16
"""Parameter tensors of a GPT-2, each holding all layers at once."""

comptime STAGGER = 65_600
"""Bytes by which arenas of one size start apart, so that the same element of each lies in another cache set and bank."""

comptime WTE = 0
comptime WPE = 1
comptime LN1W = 2
comptime LN1B = 3
comptime QKVW = 4
comptime QKVB = 5
comptime ATTPROJW = 6
comptime ATTPROJB = 7
comptime LN2W = 8
comptime LN2B = 9
comptime FCW = 10
comptime FCB = 11
comptime FCPROJW = 12
comptime FCPROJB = 13
comptime LNFW = 14
comptime LNFB = 15


@fieldwise_init
struct ParameterSpec(Copyable, Movable):
    """Name and shape of one parameter tensor."""

    var name: String
    """Name as in llm.c."""
    var layers: Int
    """Leading dimension: L, or 1 for tensors outside the blocks."""
    var rows: Int
    """Output features of a matrix; 1 for a vector."""
    var columns: Int
    """Input features of a matrix; length of a vector."""

    def layer_size(self) -> Int:
        """Scalars that belong to one layer."""
        return self.rows * self.columns

    def size(self) -> Int:
        """Scalars in all."""
        return self.layers * self.rows * self.columns

    def is_matrix(self) -> Bool:
        """Tells linear weights and embeddings from biases and layernorm vectors."""
        return self.rows > 1


def parameter_specs(config: GPT2Config) -> List[ParameterSpec]:
    """Lists the 16 tensors in the order of llm.c's files; linear weights are (out, in)."""
    var L = config.num_layers
    var C = config.channels
    return [
        ParameterSpec("wte", 1, config.padded_vocab_size, C),
        ParameterSpec("wpe", 1, config.max_seq_len, C),
        ParameterSpec("ln1w", L, 1, C),
        ParameterSpec("ln1b", L, 1, C),
        ParameterSpec("qkvw", L, 3 * C, C),
        ParameterSpec("qkvb", L, 1, 3 * C),
        ParameterSpec("attprojw", L, C, C),
        ParameterSpec("attprojb", L, 1, C),
        ParameterSpec("ln2w", L, 1, C),
        ParameterSpec("ln2b", L, 1, C),
        ParameterSpec("fcw", L, 4 * C, C),
        ParameterSpec("fcb", L, 1, 4 * C),
        ParameterSpec("fcprojw", L, C, 4 * C),
        ParameterSpec("fcprojb", L, 1, C),
        ParameterSpec("lnfw", 1, 1, C),
        ParameterSpec("lnfb", 1, 1, C),
    ]


struct ParameterTensors[dtype: DType](Movable):
    """Sixteen tensors in one arena: parameters, their gradients, or a moment of AdamW. Zero-filled at first."""

    var specs: List[ParameterSpec]
    """Names and shapes, in file order."""
    var _arena: Arena
    var _tensors: List[Tensor[Self.dtype]]

    def __init__(out self, config: GPT2Config, place: Int = 0) raises:
        """Reserves the arena for these sizes, for the place-th of the arenas that AdamW walks through side by side.

        Raises:
            If the system has no room.
        """
        self.specs = parameter_specs(config)
        self._arena = Arena(parameter_bytes[Self.dtype](config) + place * STAGGER)
        _ = self._arena.carve[DType.uint8](place * STAGGER)
        self._tensors = List[Tensor[Self.dtype]](capacity=NUM_TENSORS)
        for ref spec in self.specs:
            self._tensors.append(self._arena.carve[Self.dtype](spec.size()))

    @no_inline
    def __deinit__(deinit self):
        """Frees what it owns. Not inlined, because every call that may raise is followed by a copy."""
        pass

    @no_inline
    def __getitem__(self, tensor: Int) -> Tensor[Self.dtype]:
        """Views one tensor (WTE .. LNFB), all layers."""
        return self._tensors[tensor]

    def tensors(self) -> List[Tensor[Self.dtype]]:
        """Views all tensors, in file order."""
        return self._tensors.copy()

    @no_inline
    def layer(self, tensor: Int, l: Int) -> Tensor[Self.dtype]:
        """Views layer l of one tensor."""
        var size = self.specs[tensor].layer_size()
        return self._tensors[tensor].slice(l * size, size)


def parameter_bytes[dtype: DType](config: GPT2Config) -> Int:
    """Bytes of one arena of ParameterTensors."""
    var bytes = 0
    for ref spec in parameter_specs(config):
        bytes += aligned_bytes[dtype](spec.size())
    return bytes


struct ProductWeights[dtype: DType](Movable):
    """The weights of the five matrix products as these read them: the parameters themselves, or rounded copies."""

    var _arena: Arena
    var _tensors: List[Tensor[Self.dtype]]
    """By number of the tensor; those that no product reads are empty."""
    var _layers: Int

    def __init__(out self, config: GPT2Config, params: ParameterTensors[F32]) raises:
        """Views the parameters, or reserves the copies.

        Raises:
            If the system has no room.
        """
        self._layers = config.num_layers
        self._tensors = List[Tensor[Self.dtype]](capacity=NUM_TENSORS)
        self._arena = Arena(product_weight_bytes[Self.dtype](config))
        for i in range(NUM_TENSORS):
            comptime if Self.dtype == F32:
                self._tensors.append(rebind[Tensor[Self.dtype]](params[i]))
            else:
                self._tensors.append(self._arena.carve[Self.dtype](params[i].size if is_product_weight(i) else 0))

    @no_inline
    def __getitem__(self, tensor: Int) -> Tensor[Self.dtype]:
        """Views one tensor, all layers."""
        return self._tensors[tensor]

    @no_inline
    def layer(self, tensor: Int, l: Int) -> Tensor[Self.dtype]:
        """Views layer l of one tensor of the blocks."""
        var size = self._tensors[tensor].size // self._layers
        return self._tensors[tensor].slice(l * size, size)


def is_product_weight(tensor: Int) -> Bool:
    """Tells whether a matrix product reads this tensor."""
    return tensor == WTE or tensor == QKVW or tensor == ATTPROJW or tensor == FCW or tensor == FCPROJW


def product_weight_bytes[dtype: DType](config: GPT2Config) -> Int:
    """Bytes that ProductWeights reserve: none for float32."""
    var bytes = 0
    comptime if dtype != F32:
        for i, ref spec in enumerate(parameter_specs(config)):
            bytes += aligned_bytes[dtype](spec.size() if is_product_weight(i) else 0)
    return bytes
