"""Saving, loading and sharing models through the Hugging Face hub, with a model card."""

from contextlib import redirect_stdout, suppress
from pathlib import Path

from huggingface_hub import ModelCard, PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from yaml import YAMLError

from utils.errors import UserError

LIBRARY = "hierarchical-byte-transformer"
TAGS = ["byte-level", "hierarchical-transformer"]


class HubModel(PyTorchModelHubMixin, library_name=LIBRARY, tags=TAGS):
    """Adds `save_pretrained`, `from_pretrained` and `push_to_hub` to a module (safetensors and config.json).

    A README written for a model, in `card`, is saved, loaded and pushed with the weights. Without one, the hub library
    writes a generic card.
    """

    card: str | None = None

    def generate_model_card(self, *args, **kwargs) -> ModelCard:
        if self.card is None:
            return super().generate_model_card(*args, **kwargs)
        return ModelCard(self.card)

    def push_to_hub(self, repo_id: str, **options) -> str:
        """Upload weights, config.json and card to USER/NAME on the hub, and return the address of the commit.

        Args:
            options: those of `PyTorchModelHubMixin.push_to_hub`.

        Raises:
            UserError: if that fails, for example without a network or a token.
        """
        try:
            return super().push_to_hub(repo_id, **options)
        except Exception as error:  # the hub's library and the network raise exceptions of many kinds
            raise UserError(f"push_to_hub: {repo_id} cannot be pushed ({error})") from error

    @classmethod
    def _from_pretrained(cls, *, model_id: str, strict: bool = True, **kwargs):
        # The hub library prints a line, and by default lets weights be missing.
        with redirect_stdout(None):
            model = super()._from_pretrained(model_id=model_id, strict=strict, **kwargs)

        readme = Path(model_id, "README.md")
        with suppress(EntryNotFoundError, ValueError, YAMLError):  # there is no card, or something else
            if not Path(model_id).is_dir():
                where = {name: kwargs[name] for name in ("revision", "cache_dir", "local_files_only", "token")}
                readme = hf_hub_download(model_id, "README.md", **where)
            model.card = ModelCard.load(readme).content
        return model
