"""The matrix product. `gemm` is the one door: any sizes, any strides, fused epilogues."""

from .epilogue import Bias, BiasGelu, BiasResidual, Epilogue, GeluBackward, Plain
from .gemm import gemm, gemm_workspace_size
from .blocking import HAS_BF16_DOT, check_product, largest_depth, per_unit
from .kernel import add_product
from .matrix import Matrix, row_major
