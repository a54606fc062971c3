"""Every layer of llm/cpu, forward and backward, against the PyTorch reference, on ragged sizes."""

from pathlib import Path

import pytest

from llm_mojo import reference

PROGRAMS = "tests/cpu/layers/{}.mojo"
LAYERS = ["layernorm", "linear", "attention", "gelu", "embedding", "cross_entropy", "adamw"]
SIZES = {
    "tiny": dict(B=1, T=1, C=3, NH=3, OC=1, V=2),
    "ragged": dict(B=2, T=5, C=12, NH=3, OC=7, V=19),
    "one head, three tiles": dict(B=1, T=130, C=64, NH=1, OC=50, V=300),
    "one past a tile": dict(B=3, T=65, C=60, NH=4, OC=1, V=131),
    "more queries than share their keys": dict(B=1, T=530, C=16, NH=8, OC=2, V=7),
}


@pytest.fixture(scope="session")
def goldens(tmp_path_factory):
    """A folder for each of the sizes, with the goldens of all layers."""
    folder = tmp_path_factory.mktemp("goldens")
    for number, sizes in enumerate(SIZES.values()):
        reference.layer_goldens(folder / str(number), seed=sizes["T"], **sizes)
    return dict(zip(SIZES, sorted(folder.iterdir())))


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(
    "layer", [pytest.param(layer, marks=pytest.mark.builds(PROGRAMS.format(layer))) for layer in LAYERS]
)
def test_layers(layer, sizes, goldens, mojo_program):
    result = mojo_program(PROGRAMS.format(layer)).run(goldens[sizes])
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_layer_is_tested():
    folder = Path(__file__).parent / "cpu" / "layers"
    assert {path.stem for path in folder.glob("*.mojo")} == {"goldens", *LAYERS}
