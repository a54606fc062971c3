"""Keys and values of the positions that a text has so far, kept so that a step of generation computes one position.

Positions come in pages of BLOCK. A page holds, for each layer and head, the keys as a tile (HSp,BLOCK) and the values
as a tile (BLOCK,HSp), HSp being the head's channels padded to whole vectors: what attention multiplies is contiguous,
and memory is touched only as far as a text reaches.
"""

from llm.base.memory import Arena, Tensor, aligned_bytes
from llm.cpu.simd.tile import BLOCK, padded
from llm.model.config import GPT2Config

comptime F32 = DType.float32


struct KVCache(Movable):
    """The pages of a beginning that all texts share, and of each text's own continuation."""

    var shared: Pages
    """Positions 0 .. shared_length - 1 of every text."""
    var shared_length: Int
    var own: List[Pages]
    """What follows them, for each text."""
    var own_length: Int
    """Positions that each text has in its own pages."""
    var _arena: Arena

    def __init__(out self, config: GPT2Config, texts: Int, positions: Int) raises:
        """Reserves room for texts of so many positions; it costs memory where it is used.

        Raises:
            If the system has no room.
        """
        var size = Pages.size(config, positions)
        self._arena = Arena((1 + texts) * aligned_bytes[F32](size))
        self.shared = Pages(config, self._arena.carve[F32](size))
        self.own = List[Pages](capacity=texts)
        for _ in range(texts):
            self.own.append(Pages(config, self._arena.carve[F32](size)))
        self.shared_length = 0
        self.own_length = 0

    def length(self) -> Int:
        """Returns the positions that each text has."""
        return self.shared_length + self.own_length


struct Pages(Copyable, TrivialRegisterPassable):
    """Room for the positions of one text, in all layers and heads."""

    var _tiles: Tensor[F32]
    var _layers: Int
    var _heads: Int
    var _tile_size: Int

    def __init__(out self, config: GPT2Config, memory: Tensor[F32]):
        """Divides memory into tiles."""
        self._tiles = memory
        self._layers = config.num_layers
        self._heads = config.num_heads
        self._tile_size = padded(config.head_size()) * BLOCK

    @staticmethod
    def size(config: GPT2Config, positions: Int) -> Int:
        """Counts the scalars of pages for so many positions."""
        var pages = (positions + BLOCK - 1) // BLOCK
        return pages * config.num_layers * config.num_heads * 2 * padded(config.head_size()) * BLOCK

    @always_inline
    def keys(self, page: Int, layer: Int, head: Int) -> Tensor[F32]:
        """Views a tile of keys: (HSp,BLOCK)."""
        var i = ((page * self._layers + layer) * self._heads + head) * 2
        return self._tiles.slice(i * self._tile_size, self._tile_size)

    @always_inline
    def values(self, page: Int, layer: Int, head: Int) -> Tensor[F32]:
        """Views a tile of values: (BLOCK,HSp)."""
        var i = ((page * self._layers + layer) * self._heads + head) * 2 + 1
        return self._tiles.slice(i * self._tile_size, self._tile_size)
