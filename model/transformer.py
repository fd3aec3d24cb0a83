"""The hierarchical transformer: parallel levels of a byte stream, merged after every layer to predict the next byte."""

from contextlib import redirect_stdout
from io import StringIO

import torch
import torch.nn.functional as F
from einops import rearrange
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from model.block import Block
from model.config import LevelConfig, ModelConfig
from model.levels import Compress, Merge, align
from model.losses import Losses, Reconstruction
from model.rotary import Rotary
from model.sampling import generate


class Level(nn.Module):
    """One level: its way in from the bytes' embeddings, and a block for each layer."""

    def __init__(self, level: LevelConfig, config: ModelConfig, dim_in: int):
        super().__init__()
        self.chains = level.chains
        self.compress = Compress(dim_in, level)
        self.norm_in = nn.LayerNorm(level.dim)
        self.rotary = Rotary(level.dim_head, config.rotary_xpos)
        self.blocks = nn.ModuleList(Block(level, config.use_flash_attn, config.dropout) for _ in range(config.depth))

    def embed(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Embeddings (b n d_in) to this level's tokens (b ⌈n/s⌉ d), and the rotary tables of their chains."""
        tokens = self.norm_in(self.compress(x))
        length = -(-tokens.shape[1] // self.chains)
        return tokens, self.rotary(torch.arange(length, device=x.device))


class HierarchicalTransformer(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="hierarchical-byte-transformer",
    license="mit",
    tags=["byte-level", "hierarchical-transformer"],
):
    """A causal language model over bytes on several time scales at once.

    Takes the fields of `ModelConfig` as keyword arguments; per-level ones take one value, or one per level.

    Raises:
        ValueError: naming every argument that does not fit, what it got and what is allowed.
    """

    def __init__(self, **kwargs):
        super().__init__()
        self.config = config = ModelConfig(**kwargs)
        self._hub_mixin_config = config.to_dict()  # what save_pretrained writes: every argument, defaults included
        levels, predicting = config.levels, config.predict_index
        dim_in = max(level.dim for level in levels)
        everyone = range(len(levels))

        self.token_emb = nn.Embedding(config.num_tokens, dim_in)
        self.levels = nn.ModuleList(Level(level, config, dim_in) for level in levels)
        targets = tuple(everyone) if config.hierarchy_merge_all else (predicting,)
        self.merges = nn.ModuleList(Merge(levels, targets) for _ in range(config.depth if len(levels) > 1 else 0))

        # The levels that predict the next byte, and those that must give back their own; only they have a way out.
        self.heads = tuple(everyone) if config.predict_use_all_hierarchy else (predicting,)
        self.strides = [levels[i].stride for i in self.heads]
        self.to_logits = nn.Linear(sum(levels[i].dim for i in self.heads), config.num_tokens, bias=False)
        recons = [i for i in everyone if config.recon_loss_weight > 0 and levels[i].compression > 1]
        self.recons = nn.ModuleDict({str(i): Reconstruction(levels[i], config.num_tokens) for i in recons})
        self.norms = nn.ModuleDict({str(i): nn.LayerNorm(levels[i].dim) for i in sorted({*self.heads, *recons})})
        self.apply(init_weights)

    def forward(self, ids: Tensor, return_loss: bool = False) -> Tensor | tuple[Tensor, Losses]:
        """Logits of the byte after each of ids (b n): (b n num_tokens), where n may be any length.

        With `return_loss`, ids is (b n+1): its last n bytes are predicted from its first n, and the weighted sum of the
        losses comes back as a scalar with the parts as `Losses`.
        """
        if return_loss:
            ids, labels = ids[:, :-1], ids[:, 1:]
        embeds = self.embed(ids)
        logits = self.predict(embeds, ids.shape[1])
        if not return_loss:
            return logits

        cross_entropy = F.cross_entropy(
            rearrange(logits, "b n v -> (b n) v").float(), rearrange(labels, "b n -> (b n)")
        )
        loss, recon = cross_entropy, None
        if self.recons:
            recon = sum(head(embeds[i], ids) for i, head in self.recons.items())
            loss = loss + self.config.recon_loss_weight * recon
        return loss, Losses(cross_entropy.detach(), recon if recon is None else recon.detach())

    def embed(self, ids: Tensor) -> dict[str, Tensor]:
        """The normed outputs of the levels that predict or reconstruct, by index, for ids (b n): (b ⌈n/s⌉ d) each."""
        n = ids.shape[1]
        x = self.token_emb(ids)
        tokens, rotaries = map(list, zip(*(level.embed(x) for level in self.levels), strict=True))
        for layer in range(self.config.depth):
            tokens = [
                level.blocks[layer](t, rotary) for level, t, rotary in zip(self.levels, tokens, rotaries, strict=True)
            ]
            if self.merges:
                tokens = self.merges[layer](tokens, n)
        return {i: norm(tokens[int(i)]) for i, norm in self.norms.items()}

    def predict(self, embeds: dict[str, Tensor], n: int) -> Tensor:
        """Logits (b n num_tokens) from the outputs of the predicting levels, each mapped at its own rate."""
        outputs = [embeds[str(i)] for i in self.heads]
        weights = self.to_logits.weight.split([t.shape[-1] for t in outputs], dim=1)
        parts = zip(outputs, weights, self.strides, strict=True)
        return sum(align(F.linear(t, weight), stride, 1, n) for t, weight, stride in parts)

    generate = generate

    @classmethod
    def _from_pretrained(cls, strict: bool = True, **kwargs):
        with redirect_stdout(StringIO()):  # the mixin prints a line, and lets weights be missing
            return super()._from_pretrained(strict=strict, **kwargs)


def init_weights(module: nn.Module):
    """Linear maps keep the scale of their input; embeddings start small."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
