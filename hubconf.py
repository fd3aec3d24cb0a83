"""What `torch.hub.load` finds here: a trained model in a line, from outside of the repository.

`torch.hub.load("CHECKOUT", "trained", "RUN_DIR/model", source="local")`
"""

from model import HierarchicalTransformer

dependencies = ["torch", "einops", "safetensors", "huggingface_hub"]


def trained(source: str) -> HierarchicalTransformer:
    """The model in a folder, such as RUN_DIR/model, or USER/NAME on the Hugging Face hub, in evaluation mode."""
    return HierarchicalTransformer.from_pretrained(source).eval()
