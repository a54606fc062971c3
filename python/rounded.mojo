"""A decoder whose weights are rounded to bfloat16 from a model's own, which are float32."""

from llm.cpu.simd.conversion import convert
from llm.cpu.threads.crew import Team
from llm.model.config import GPT2Config
from llm.model.decoder import Decoder
from llm.model.tensors import NUM_TENSORS, ParameterTensors

comptime BF16 = DType.bfloat16


struct RoundedDecoder(Movable):
    """Owner of rounded parameters and of the decoder that reads them."""

    var decoder: Decoder[BF16]
    var _params: ParameterTensors[BF16]

    def __init__(
        out self,
        config: GPT2Config,
        params: ParameterTensors[DType.float32],
        threads: Int,
        *,
        texts: Int,
        context: Int,
    ) raises:
        """Rounds the parameters as they are now.

        Raises:
            If the model has no such context, or the system has no room.
        """
        self._params = ParameterTensors[BF16](config)
        for i in range(NUM_TENSORS):
            convert(Team(1), self._params[i], params[i])
        self.decoder = Decoder[BF16](config, self._params, threads, texts=texts, context=context)
