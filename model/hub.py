"""Saving, loading and sharing models through the Hugging Face hub, with a model card."""

from contextlib import redirect_stdout, suppress
from pathlib import Path

from huggingface_hub import ModelCard, PyTorchModelHubMixin
from huggingface_hub.errors import EntryNotFoundError
from yaml import YAMLError

LIBRARY = "hierarchical-byte-transformer"
TAGS = ["byte-level", "hierarchical-transformer"]


class HubModel(PyTorchModelHubMixin, library_name=LIBRARY, license="mit", tags=TAGS):
    """Adds `save_pretrained`, `from_pretrained` and `push_to_hub` to a module (safetensors and config.json).

    A README written for a model, in `card`, is saved, loaded and pushed with the weights. Without one, the hub library
    writes a generic card.
    """

    card: str | None = None

    def generate_model_card(self, *args, **kwargs) -> ModelCard:
        if self.card is None:
            return super().generate_model_card(*args, **kwargs)
        return ModelCard(self.card)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, strict: bool = True, **kwargs):
        # The hub library prints a line, and by default lets weights be missing.
        with redirect_stdout(None):
            model = super()._from_pretrained(model_id=model_id, strict=strict, **kwargs)

        readme = Path(model_id, "README.md") if Path(model_id).is_dir() else model_id
        with suppress(EntryNotFoundError, ValueError, YAMLError):  # there is no card, or something else
            model.card = ModelCard.load(readme, token=kwargs["token"]).content
        return model
