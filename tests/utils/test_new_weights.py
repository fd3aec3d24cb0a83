import subprocess
import sys

import pytest
import torch

from model import HierarchicalTransformer
from utils.new_weights import NoInitialValues

CONFIG = {"dim": 8, "heads": 1, "dim_head": 4, "depth": 1, "seq_len": 8, "hierarchies": (1, 2), "ngrams": (2,)}
CONFIG |= {"matches": (3,), "next_latent_loss_weight": 0.1}


@pytest.mark.parametrize("device", [None, "meta"])
def test_no_random_number_is_drawn(device):
    before = torch.get_rng_state()
    with NoInitialValues(device):
        model = HierarchicalTransformer(**CONFIG)
    assert torch.equal(torch.get_rng_state(), before)
    if device == "meta":
        assert {weight.device.type for weight in model.parameters()} >= {"meta"}
        assert sum(weight.numel() for weight in model.parameters() if not weight.is_meta) < 8 * 8 * 10  # those of norms


def test_a_model_is_loaded_without_pytorch_s_compiler(tmp_path):
    """Its import takes a second."""
    HierarchicalTransformer(**CONFIG).save_pretrained(tmp_path / "model")
    program = f"""
import sys
from pathlib import Path
from model.generation.load import load_model
load_model(Path({str(tmp_path)!r}), "cpu")
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert (done.stdout, done.stderr, done.returncode) == ("False\n", "", 0)
