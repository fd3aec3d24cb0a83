"""The hierarchical transformer: parallel levels of a byte stream, merged layer by layer to predict the next byte."""

from contextlib import redirect_stdout, suppress
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from huggingface_hub import ModelCard, PyTorchModelHubMixin
from huggingface_hub.errors import EntryNotFoundError
from torch import Tensor, nn

from model.block import XPOS_SCALE_BASE, Block, Cache, Rotary, after_past
from model.config import LevelConfig, ModelConfig
from model.generation.sampling import generate, stream
from model.levels import Compress, Merge, align
from model.losses import Losses, build_losses
from model.matches import matches
from model.ngrams import ngram_rows
from utils.checks import require

LIBRARY, TAGS = "hierarchical-byte-transformer", ["byte-level", "hierarchical-transformer"]


class Level(nn.Module):
    """One level: its way in from the bytes' embeddings, and a block for each layer that it takes part in."""

    def __init__(self, level: LevelConfig, config: ModelConfig, dim_in: int):
        super().__init__()
        self.chains, self.stride = level.chains, level.stride
        self.compress, self.norm_in = Compress(dim_in, level), nn.LayerNorm(level.dim)
        self.rotary = Rotary(level.heads, level.kv_heads, level.dim_head, config.rotary_xpos)
        self.blocks = nn.ModuleDict({str(k): Block(level, config, k in level.attending) for k in level.layers})

    def embed(self, x: Tensor, n: int, cache: Cache | None) -> tuple[Tensor, Tensor]:
        """The last n of the embeddings x to tokens (b ⌈n/s⌉ d), and the rotary table of their positions."""
        tokens = self.norm_in(self.compress(x, n).to(x.dtype))  # autocast must not lower the residual stream
        positions = torch.arange(tokens.shape[1], device=x.device) + (cache.position // self.stride if cache else 0)
        middle = ((cache.length // self.stride if cache else 0) + len(positions) // 2) // self.chains
        origin = cache.setdefault(self, middle) if cache is not None else middle
        if cache is not None and self.rotary.xpos and middle - origin > 8 * XPOS_SCALE_BASE:  # before scales overflow
            fade = self.rotary.scale ** ((middle - origin) / XPOS_SCALE_BASE)
            for ring in (ring for block in self.blocks.values() for ring in cache.get(block.attn, ())):
                ring[0].mul_(fade)
            cache[self] = origin = middle
        return tokens, self.rotary(positions // self.chains, origin)


class HierarchicalTransformer(nn.Module, PyTorchModelHubMixin, library_name=LIBRARY, license="mit", tags=TAGS):
    """A causal language model over bytes on several time scales at once, with the fields of `ModelConfig` as keywords.
    A ValueError names every argument that does not fit, what it got and what is allowed.
    """

    card: str | None = None  # a README, if its maker wrote one: saved, loaded and pushed with the weights
    generate, stream = generate, stream

    def __init__(self, **kwargs):
        super().__init__()
        self.config = config = ModelConfig(**kwargs)
        self._hub_mixin_config = config.to_dict()  # what save_pretrained writes: every argument, defaults included
        levels, self.dims, self.layers = config.levels, config.per_level("dim"), max(config.per_level("depth"))
        self.targets = tuple(i for i, level in enumerate(levels) if level.merged)
        self.heads = tuple(i for i, level in enumerate(levels) if level.predicts)

        self.token_emb = nn.Embedding(config.num_tokens, max(self.dims))
        self.ngram_embs = nn.ModuleList(nn.Embedding(config.ngram_rows, max(self.dims)) for _ in config.ngrams)
        rows = config.match_places * len(config.matches + config.word_matches) * (1 + config.num_tokens)
        self.match_emb = nn.EmbeddingBag(rows, max(self.dims), mode="sum") if rows else None  # of tables in a row
        self.ngram_dropout = nn.Dropout1d(config.ngram_dropout)  # of whole embeddings
        self.levels = nn.ModuleList(Level(level, config, max(self.dims)) for level in levels)
        heard = {k - 1 for i in self.targets for k in levels[i].layers} | {self.layers - 1} if levels[1:] else {}
        self.merges = nn.ModuleDict({str(k): Merge(levels, self.targets) for k in range(self.layers) if k in heard})
        self.to_logits = nn.Linear(sum(self.dims[i] for i in self.heads), config.num_tokens, bias=False)
        self.losses = build_losses(config, max(self.dims))
        read = {*map(str, self.heads), *(i for modules in self.losses.values() for i in modules)}
        self.norms = nn.ModuleDict({i: nn.LayerNorm(self.dims[int(i)]) for i in sorted(read)})  # only what is read

        # Linear maps keep the scale of their input, embeddings start small, additions to a residual stream at zero.
        for name, module in self.named_modules():
            if isinstance(module, nn.Embedding | nn.EmbeddingBag):
                nn.init.normal_(module.weight, std=0.02)
            elif isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5)
                if name.endswith("to_out"):
                    nn.init.zeros_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, ids: Tensor, return_loss: bool = False, cache: Cache | None = None) -> Tensor | tuple:
        """Logits of the byte after each of ids (b n): (b n num_tokens), where n may be any length.

        With `return_loss`, the last n of ids (b n+1) are predicted: the weighted sum of losses, and each as `Losses`.
        With a cache, the first call may bring any number of bytes, each later one brings one, as in one full pass.
        """
        if return_loss:
            ids, labels = ids[:, :-1], ids[:, 1:]
        n, embeds, logits = ids.shape[1], self.embed(ids, cache), ids.new_zeros(())
        weights = self.to_logits.weight.split([self.dims[i] for i in self.heads], dim=1)
        for i, weight in zip(self.heads, weights, strict=True):  # each at its level's own rate
            part = cache[self.to_logits, i] if cache and str(i) not in embeds else F.linear(embeds[str(i)], weight)
            if cache is not None:
                cache[self.to_logits, i] = part[:, -1:]
            logits = logits + align(part, self.levels[i].stride, 1, n)
        if cache is not None:
            cache.length, cache.position = cache.length + n, cache.position + n
        if not return_loss:
            return logits

        nats = F.cross_entropy(rearrange(logits, "b n v -> (b n) v").float(), rearrange(labels, "b n -> (b n)"))
        loss, sums, by_level = nats, {}, {}
        x = self.token_emb(ids) if "next_latent" in self.losses else None
        for name, modules in self.losses.items():
            for i, module in modules.items():
                part = module(embeds[i], ids, labels, x)
                loss = loss + module.loss_weight * part
                by_level[f"{name}/{module.level.compression}x"] = part.detach()
                sums[name] = sums.get(name, 0) + part.detach()
        return loss, Losses(nats.detach(), **sums, by_level=by_level)

    def embed(self, ids: Tensor, cache: Cache | None = None) -> dict[str, Tensor]:
        """Of ids (b n), the normed outputs (b ⌈n/s⌉ d) that something reads, by level, where its stride comes round."""
        n, x, config = ids.shape[1], self.token_emb(ids), self.config
        require({"ids": f"{n} bytes a row"}, ids=(not cache or n == 1, "1 when the cache is not empty"))
        if cache is not None:
            ids = torch.cat((cache.get(self, ids[:, :0]), ids), dim=1)
            cache[self] = ids[:, -max((config.seq_len if self.match_emb else 1, *config.ngrams)) :]
        for emb, rows in zip(self.ngram_embs, ngram_rows(ids, config.ngrams, config.ngram_rows, n), strict=True):
            x = x + self.ngram_dropout(emb(rows))
        if self.match_emb is not None:
            reach = torch.as_tensor(cache.position + n if cache else config.seq_len).clamp(max=config.seq_len)
            found = matches(ids, config.matches, config.word_matches, config.match_places, reach, n)
            rows = found + torch.arange(found.shape[-1], device=ids.device) * (1 + config.num_tokens)
            x = x + self.match_emb(rows.flatten(0, 1)).unflatten(0, rows.shape[:2])
        x = after_past(x, max(config.per_level("hierarchies")) - 1, cache, self.token_emb)
        due = {i: level for i, level in enumerate(self.levels) if not cache or cache.length % level.stride == 0}
        tokens, rotary = {}, {}
        for i, level in due.items():
            tokens[i], rotary[i] = level.embed(x, n, cache)

        for layer in range(self.layers):
            for i, level in due.items():
                if str(layer) in level.blocks:
                    tokens[i] = level.blocks[str(layer)](tokens[i], rotary[i], cache)
            if str(layer) in self.merges and any(i in due for i in self.targets):
                tokens = self.merges[str(layer)](tokens, n, cache)
        return {i: norm(tokens[int(i)]) for i, norm in self.norms.items() if int(i) in due}

    def generate_model_card(self, *args, **kwargs) -> ModelCard:
        """The model's own card, or the hub library's generic one."""
        return super().generate_model_card(*args, **kwargs) if self.card is None else ModelCard(self.card)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, strict: bool = True, **kwargs) -> "HierarchicalTransformer":
        with redirect_stdout(None):  # the mixin prints a line, and lets weights be missing
            model = super()._from_pretrained(model_id=model_id, strict=strict, **kwargs)
        readme = Path(model_id, "README.md") if Path(model_id).is_dir() else model_id
        with suppress(EntryNotFoundError, ValueError):  # no card, on the hub or in a folder
            model.card = ModelCard.load(readme, token=kwargs["token"]).content
        return model
