"""Every layer of llm/cpu, forward and backward, against the PyTorch reference, on ragged sizes."""

import pytest

from llm_mojo import reference

SIZES = {
    "tiny": dict(B=1, T=1, C=3, NH=3, OC=1, V=2),
    "ragged": dict(B=2, T=5, C=12, NH=3, OC=7, V=19),
    "one head, three tiles": dict(B=1, T=130, C=64, NH=1, OC=50, V=300),
    "one past a tile": dict(B=3, T=65, C=60, NH=4, OC=1, V=131),
    "more queries than share their keys": dict(B=1, T=530, C=16, NH=8, OC=2, V=7),
}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_layers(sizes, mojo_program, tmp_path):
    reference.layer_goldens(tmp_path, seed=sizes["T"], **sizes)
    result = mojo_program("tests/cpu/layers.mojo").run(tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
