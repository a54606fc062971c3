"""The tensors of a GPT-2: one list that sizes, loading, saving, initialisation, update, norm and the tests all walk."""

from llm.base.memory import Arena, Tensor
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

# How a tensor is initialised (see initialize.mojo).
comptime ZEROS = 0
comptime ONES = 1
comptime NORMAL = 2
comptime NORMAL_RESIDUAL = 3
"""Normal, and smaller by the number of matrices that write into the residual stream."""


@fieldwise_init
struct ParameterSpec(Copyable, Movable):
    """Name, shape and treatment of one parameter tensor."""

    var name: String
    """Name as in llm.c."""
    var layers: Int
    """Leading dimension: L, or 1 for tensors outside the blocks."""
    var rows: Int
    """Output features of a matrix; 1 for a vector."""
    var columns: Int
    """Input features of a matrix; length of a vector."""
    var initial: Int
    """ZEROS, ONES, NORMAL or NORMAL_RESIDUAL."""
    var is_product: Bool
    """Whether a matrix product reads it: such weights have rounded copies in a bfloat16 model."""

    def layer_size(self) -> Int:
        """Scalars that belong to one layer."""
        return self.rows * self.columns

    def size(self) -> Int:
        """Scalars in all."""
        return self.layers * self.rows * self.columns

    def is_matrix(self) -> Bool:
        """Tells linear weights and embeddings, which decay, from biases and layernorm vectors."""
        return self.rows > 1


def parameter_specs(config: GPT2Config) -> List[ParameterSpec]:
    """Lists the 16 tensors in the order of llm.c's files; linear weights are (out, in)."""
    var L = config.num_layers
    var C = config.channels
    return [
        ParameterSpec("wte", 1, config.padded_vocab_size, C, NORMAL, True),
        ParameterSpec("wpe", 1, config.max_seq_len, C, NORMAL, False),
        ParameterSpec("ln1w", L, 1, C, ONES, False),
        ParameterSpec("ln1b", L, 1, C, ZEROS, False),
        ParameterSpec("qkvw", L, 3 * C, C, NORMAL, True),
        ParameterSpec("qkvb", L, 1, 3 * C, ZEROS, False),
        ParameterSpec("attprojw", L, C, C, NORMAL_RESIDUAL, True),
        ParameterSpec("attprojb", L, 1, C, ZEROS, False),
        ParameterSpec("ln2w", L, 1, C, ONES, False),
        ParameterSpec("ln2b", L, 1, C, ZEROS, False),
        ParameterSpec("fcw", L, 4 * C, C, NORMAL, True),
        ParameterSpec("fcb", L, 1, 4 * C, ZEROS, False),
        ParameterSpec("fcprojw", L, C, 4 * C, NORMAL_RESIDUAL, True),
        ParameterSpec("fcprojb", L, 1, C, ZEROS, False),
        ParameterSpec("lnfw", 1, 1, C, ONES, False),
        ParameterSpec("lnfb", 1, 1, C, ZEROS, False),
    ]


def is_of_blocks(tensor: Int) -> Bool:
    """Tells the tensors of the blocks, which have all layers, from the others."""
    return tensor >= LN1W and tensor <= FCPROJB


def num_parameters(config: GPT2Config) -> Int:
    """Counts the parameters, padding rows of wte included."""
    var count = 0
    for ref spec in parameter_specs(config):
        count += spec.size()
    return count


struct ParameterTensors[dtype: DType](Movable):
    """Sixteen tensors in one arena: parameters, their gradients, or a state of the optimizer. Zero-filled at first."""

    var specs: List[ParameterSpec]
    """Names and shapes, in file order."""
    var _arena: Arena
    var _tensors: List[Tensor[Self.dtype]]

    def __init__(out self, config: GPT2Config, place: Int = 0) raises:
        """Reserves the arena for these sizes, for the place-th of the arenas that an update walks through side by side.

        Raises:
            If the system has no room.
        """
        self = Self(config, place, Arena(parameter_bytes[Self.dtype](config) + place * STAGGER))

    def __init__(out self, config: GPT2Config, place: Int, var arena: Arena) raises:
        self.specs = parameter_specs(config)
        self._arena = arena^
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


def parameter_bytes[dtype: DType](config: GPT2Config) raises -> Int:
    """Counts the bytes of one arena of ParameterTensors."""
    return ParameterTensors[dtype](config, 0, Arena.counting())._arena.used


struct RoundedWeights[dtype: DType](Movable):
    """Copies of the weights that matrix products read, rounded to their type; for float32 the parameters themselves."""

    var _arena: Arena
    var _tensors: List[Tensor[Self.dtype]]
    """By number of the tensor; those that no product reads are empty."""

    def __init__(out self, config: GPT2Config, params: ParameterTensors[F32]) raises:
        """Views the parameters, or reserves the copies.

        Raises:
            If the system has no room.
        """
        self = Self(config, params.tensors(), Arena(rounded_weight_bytes[Self.dtype](config)))

    def __init__(out self, config: GPT2Config, params: List[Tensor[F32]], var arena: Arena) raises:
        self._arena = arena^
        self._tensors = List[Tensor[Self.dtype]](capacity=NUM_TENSORS)
        for i, ref spec in enumerate(parameter_specs(config)):
            comptime if Self.dtype == F32:
                self._tensors.append(rebind[Tensor[Self.dtype]](params[i]))
            else:
                self._tensors.append(self._arena.carve[Self.dtype](spec.size() if spec.is_product else 0))

    @no_inline
    def __getitem__(self, tensor: Int) -> Tensor[Self.dtype]:
        """Views one tensor, all layers."""
        return self._tensors[tensor]

    def tensors(self) -> List[Tensor[Self.dtype]]:
        """Views all tensors, in file order."""
        return self._tensors.copy()


def rounded_weight_bytes[dtype: DType](config: GPT2Config) raises -> Int:
    """Counts the bytes that RoundedWeights reserve: none for float32."""
    comptime if dtype == F32:
        return 0
    else:
        return RoundedWeights[dtype](config, List[Tensor[F32]](), Arena.counting())._arena.used
