"""The notebook of examples/ runs, in a kernel, and shows what it says."""

import shutil

import pytest

from mojo_programs import ROOT

nbclient = pytest.importorskip("nbclient")
pytestmark = pytest.mark.engine


def test_first_steps(tmp_path, monkeypatch):
    import nbformat

    # The kernel finds the package of this checkout, and the presets.
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'pysrc'}")
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    shutil.copytree(ROOT / "presets", tmp_path / "presets")
    notebook = nbformat.read(ROOT / "examples/first_steps.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "results are not committed"
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": f"{tmp_path}"}}).execute()
    shown = [cell.get("outputs", []) for cell in notebook.cells]
    kinds = [kind for outputs in shown for output in outputs for kind in output.get("data", {})]
    assert "text/html" in kinds and "image/png" in kinds
    html = next(
        output["data"]["text/html"] for outputs in shown for output in outputs if "text/html" in output.get("data", {})
    )
    assert "step 400 of 400" in html and "<polyline" in html
    said = "".join(output.get("text", "") for outputs in shown for output in outputs)
    assert "by hand" in said and "step 4 loss" in said
