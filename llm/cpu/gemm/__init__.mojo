"""The matrix product. `gemm` is the one door: any sizes, any strides, fused epilogues."""

from .epilogue import Bias, BiasGelu, BiasResidual, Epilogue, GeluBackward, Plain
from .gemm import gemm, gemm_workspace_size
from .kernel import HAS_BF16_DOT
from .matrix import Matrix, row_major
