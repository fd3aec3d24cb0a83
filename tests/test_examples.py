"""The examples run, from top to bottom, as a reader would run them."""

import json

import nbformat
from nbclient import NotebookClient

from tests.conftest import ROOT


def test_the_notebook_trains_draws_scores_and_samples(tmp_path, monkeypatch):
    notebook = nbformat.read(ROOT / "examples" / "quickstart.ipynb", as_version=4)
    assert len(notebook.cells) < 20
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)  # as it is committed

    (tmp_path / "examples").mkdir()  # the repository, with a place of its own for runs
    for path in ROOT.iterdir():
        if path.name not in ("examples", "runs"):
            (tmp_path / path.name).symlink_to(path)
    monkeypatch.setenv("STEPS", "8")  # weights begin a little above 8 bits
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path / "examples")}}).execute()

    (run_dir,) = (tmp_path / "runs").iterdir()
    assert (run_dir / "model" / "model.safetensors").is_file()
    said = ["".join(output.get("text", "") for output in cell.outputs) for cell in code]
    (score,) = (json.loads(text.splitlines()[-1]) for text in said if '"bits_per_byte"' in text)
    assert 4 < score["bits_per_byte"] < 8 and score["bytes"] == 50_000
    assert any(text.startswith("def ") and len(text) > 100 for text in said)
    kinds = [set(output.data) for cell in code for output in cell.outputs if output.output_type == "execute_result"]
    assert [kind & {"image/png", "text/html"} for kind in kinds] == [{"image/png"}, {"text/html"}]
