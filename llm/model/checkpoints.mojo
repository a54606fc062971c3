"""A GPT-2 from and to llm.c's checkpoints: its sizes in the header, its 16 tensors (`parameter_specs`) in order."""

from llm.base.written_files import AtomicFile
from llm.formats import checkpoint
from llm.formats.checkpoint import CheckpointFile, CheckpointSizes
from llm.model.config import GPT2Config
from llm.model.gpt2 import GPT2
from llm.model.tensors import NUM_TENSORS, ParameterSpec, ParameterTensors, num_parameters, parameter_specs

comptime F32 = DType.float32


def read_config(path: String) raises -> GPT2Config:
    """Reads the sizes of the model in a checkpoint.

    Raises:
        If there is no checkpoint under this name, or its header, sizes and length do not agree.
    """
    return _checked_config(CheckpointFile(path))


def read_parameters[dtype: DType](path: String, params: ParameterTensors[dtype]) raises:
    """Fills the parameters from a checkpoint; fp32 and bfloat16 are turned into each other, to the nearest value.

    Raises:
        If there is no good checkpoint under this name, or its model has other sizes.
    """
    var file = CheckpointFile(path)
    var found = parameter_specs(_checked_config(file))
    for i in range(NUM_TENSORS):
        if _shape(found[i]) != _shape(params.specs[i]):
            raise file.error(
                String(
                    t"expected {found[i].name} of shape {_shape(params.specs[i])}, found {_shape(found[i])}; give the"
                    t" checkpoint of a model with the same sizes"
                )
            )
    file.read(params.tensors())


def load_parameters[dtype: DType, //](path: String, mut model: GPT2[dtype]) raises:
    """Gives a model the parameters of a checkpoint.

    Raises:
        If there is no good checkpoint under this name, or its model has other sizes.
    """

    def read(params: ParameterTensors[F32]) raises {imm}:
        read_parameters(path, params)

    model.write_parameters(read)


def write_checkpoint(path: String, config: GPT2Config, params: ParameterTensors[F32], in_bfloat16: Bool = False) raises:
    """Writes a model in fp32, or rounded to bfloat16: the whole file, or nothing.

    Raises:
        If the file cannot be written; what was there before is unchanged.
    """
    var file = checkpoint_file(path, config, params, in_bfloat16)
    file.commit()


def checkpoint_file(
    path: String, config: GPT2Config, params: ParameterTensors[F32], in_bfloat16: Bool
) raises -> AtomicFile:
    """Writes a model up to the last byte; it appears under its name when the caller commits the file.

    Raises:
        If the file cannot be written.
    """
    var sizes = CheckpointSizes(
        max_seq_len=config.max_seq_len,
        vocab_size=config.vocab_size,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        channels=config.channels,
        padded_vocab_size=config.padded_vocab_size,
    )
    return checkpoint.checkpoint_file(path, sizes, params.tensors(), in_bfloat16)


def _checked_config(file: CheckpointFile) raises -> GPT2Config:
    """Takes the sizes from a header; they are those of a GPT-2 and agree with the length of the file."""
    ref sizes = file.sizes
    var config = GPT2Config(
        sizes.max_seq_len,
        sizes.vocab_size,
        sizes.padded_vocab_size,
        sizes.num_layers,
        sizes.num_heads,
        sizes.channels,
    )
    try:
        config.validate()
    except error:
        raise file.error(String(t"not the sizes of a GPT-2: {error}; the file is damaged: make it again"))
    file.expect_parameters(num_parameters(config))
    return config^


def _shape(spec: ParameterSpec) -> String:
    return String(t"({spec.layers}, {spec.rows}, {spec.columns})")
