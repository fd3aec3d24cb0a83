"""The notebook runs from top to bottom, as a reader would run it."""

import json

import nbformat
from nbclient import NotebookClient

from tests.conftest import ROOT


def test_the_notebook_trains_plots_scores_and_samples(tmp_path, monkeypatch):
    notebook = nbformat.read(ROOT / "examples" / "quickstart.ipynb", as_version=4)
    assert len(notebook.cells) < 20
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)  # committed without outputs

    # Link the repository into a temporary folder, so that the notebook's run is written there.
    (tmp_path / "examples").mkdir()
    for path in ROOT.iterdir():
        if path.name not in ("examples", "runs"):
            (tmp_path / path.name).symlink_to(path)
    monkeypatch.setenv("STEPS", "8")  # enough to get below 8 bits per byte, a little above which a new model begins
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path / "examples")}}).execute()

    # Training wrote one run with its best model.
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert (run_dir / "model" / "model.safetensors").is_file()

    # Evaluation printed a score of 50,000 bytes, and generation printed a text that continues its prompt.
    printed = ["".join(output.get("text", "") for output in cell.outputs) for cell in code]
    (score,) = (json.loads(text.splitlines()[-1]) for text in printed if '"bits_per_byte"' in text)
    assert 2 < score["bits_per_byte"] < 8 and score["bytes"] == 50_000
    assert any(text.startswith("def ") and len(text) > 100 for text in printed)

    # Two cells show something else: the plot, and the text coloured by cost.
    results = [output for cell in code for output in cell.outputs if output.output_type == "execute_result"]
    kinds = [set(result.data) & {"image/png", "text/html"} for result in results]
    assert kinds == [{"image/png"}, {"text/html"}]
