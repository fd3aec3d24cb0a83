"""The hierarchical transformer: parallel levels of a byte stream, merged after every layer to predict the next byte."""

from contextlib import redirect_stdout
from functools import partial
from io import StringIO

import torch
import torch.nn.functional as F
from einops import rearrange
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from model.block import Block
from model.cache import Cache, LevelCache
from model.config import LevelConfig, ModelConfig
from model.levels import Compress, Merge, align
from model.losses import Chunks, Losses, NextLatent, Quantizer
from model.rotary import Rotary
from model.sampling import generate, stream

MAX_XPOS_DISTANCE = 4096  # how far a cache lets positions run from where xpos scales by one


class Level(nn.Module):
    """One level: its way in from the bytes' embeddings, and a block for each layer that it takes part in."""

    def __init__(self, level: LevelConfig, config: ModelConfig, dim_in: int):
        super().__init__()
        self.chains, self.stride = level.chains, level.stride
        self.compress = Compress(dim_in, level)
        self.norm_in = nn.LayerNorm(level.dim)
        self.rotary = Rotary(level.dim_head, config.rotary_xpos)
        self.blocks = nn.ModuleDict({str(layer): Block(level, config) for layer in level.layers})

    def embed(self, x: Tensor, cache: Cache | None, state: LevelCache | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Embeddings (b n d_in) to this level's tokens (b ⌈n/s⌉ d), and the rotary tables of their positions."""
        tokens = self.compress(x, cache and cache.before)
        tokens = self.norm_in(tokens.to(x.dtype))  # autocast must not lower the residual stream
        first = cache.length // self.stride if cache else 0
        index = torch.arange(first, first + tokens.shape[1], device=x.device)
        positions = index // self.chains
        if state is None or not cache.length:
            origin = tokens.shape[1] // self.chains // 2
            if state is not None:
                state.origin = origin
        else:
            origin = self.move_origin(state, first // self.chains)
        return tokens, self.rotary(positions, origin)

    def move_origin(self, state: LevelCache, position: int) -> int:
        """Keep xpos's scales near one however long the text: count from here on, and rescale the keys that are kept."""
        if self.rotary.scale is not None and position - state.origin > MAX_XPOS_DISTANCE:
            fade = self.rotary.fade(position - state.origin).repeat(2)
            for block in state.blocks.values():
                if block.keys.ring is not None:
                    block.keys.ring[0].mul_(fade)
            state.origin = position
        return state.origin


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
        self.targets = tuple(everyone) if config.hierarchy_merge_all else (predicting,)
        self.merges = nn.ModuleList(Merge(levels, self.targets) for _ in range(config.layers if len(levels) > 1 else 0))

        # The levels that predict the next byte, and those that must give back their own; only they have a way out.
        self.heads = tuple(everyone) if config.predict_use_all_hierarchy else (predicting,)
        self.dims = [level.dim for level in levels]
        self.to_logits = nn.Linear(sum(self.dims[i] for i in self.heads), config.num_tokens, bias=False)
        self.losses = self.build_losses(dim_in)
        ways_out = {*map(str, self.heads), *(i for losses in self.losses.values() for i in losses)}
        self.norms = nn.ModuleDict({i: nn.LayerNorm(levels[int(i)].dim) for i in sorted(ways_out)})
        self.apply(init_weights)
        for name, weight in self.named_parameters():
            if name.endswith("to_out.weight"):  # what is added to a residual stream begins at nothing
                nn.init.zeros_(weight)

    def forward(
        self, ids: Tensor, return_loss: bool = False, cache: Cache | None = None
    ) -> Tensor | tuple[Tensor, Losses]:
        """Logits of the byte after each of ids (b n): (b n num_tokens), where n may be any length.

        With `return_loss`, ids is (b n+1): its last n bytes are predicted from its first n, and the weighted sum of the
        losses comes back as a scalar with the parts as `Losses`. With a cache (`empty_cache`), the first call may bring
        any number of bytes, and each later one brings one byte, whose logits are those of a full pass over all so far.
        """
        if return_loss:
            ids, labels = ids[:, :-1], ids[:, 1:]
        embeds = self.embed(ids, cache)
        logits = self.predict(embeds, ids.shape[1], cache)
        if cache is not None:
            cache.length += ids.shape[1]
        if not return_loss:
            return logits

        nats = F.cross_entropy(rearrange(logits, "b n v -> (b n) v").float(), rearrange(labels, "b n -> (b n)"))
        loss, parts = nats, {"cross_entropy": nats.detach()}
        x = self.token_emb(ids) if "next_latent" in self.losses else None
        for name, modules in self.losses.items():
            for i, module in modules.items():
                part = module(embeds[i], ids, labels, x)
                parts[name] = parts.get(name, 0) + part.detach()
                loss = loss + self.weights[name][int(i)] * part
        return loss, Losses(**parts)

    def build_losses(self, dim_in: int) -> nn.ModuleDict:
        """The auxiliary losses by name and level, where they have a weight; NextLatent alone says something at 1x."""
        config = self.config
        kinds = {
            "reconstruction": ("recon_loss_weight", partial(Chunks, ahead=False)),
            "prophet": ("prophet_loss_weight", partial(Chunks, ahead=True)),
            "next_latent": ("next_latent_loss_weight", partial(NextLatent, rollouts=config.num_rollouts)),
            "quantizer": ("quantizer_loss_weight", Quantizer),
        }
        self.weights = {name: config.per_level(weight) for name, (weight, _) in kinds.items()}
        losses = nn.ModuleDict()
        for name, (_, build) in kinds.items():
            modules = {
                str(i): build(level, config.num_tokens, dim_in)
                for i, level in enumerate(config.levels)
                if self.weights[name][i] > 0 and (level.compression > 1 or name == "next_latent")
            }
            if modules:
                losses[name] = nn.ModuleDict(modules)
        return losses

    def embed(self, ids: Tensor, cache: Cache | None = None) -> dict[str, Tensor]:
        """The normed outputs of the levels that predict or reconstruct, by index, for ids (b n): (b ⌈n/s⌉ d) each.

        A level whose stride does not come round at a step has none.
        """
        n = ids.shape[1]
        step = cache is not None and cache.length > 0
        if step and n != 1:
            raise ValueError(f"ids: got {n} bytes a row, allowed: 1 when the cache is not empty")
        x = self.token_emb(ids)
        states = cache.levels if cache else [None] * len(self.levels)
        tokens: list[Tensor | None] = [None] * len(self.levels)
        rotaries = tokens.copy()
        for i, level in enumerate(self.levels):
            if not step or cache.length % level.stride == 0:
                tokens[i], rotaries[i] = level.embed(x, cache, states[i])
        if cache is not None:
            cache.before = self.tail(x, cache.before)

        for layer in range(self.config.layers):
            for i, level in enumerate(self.levels):
                if tokens[i] is not None and str(layer) in level.blocks:
                    state = states[i] and states[i].blocks[layer]
                    tokens[i] = level.blocks[str(layer)](tokens[i], rotaries[i], state)
            if self.merges and any(tokens[i] is not None for i in self.targets):
                tokens = self.merges[layer](tokens, n, cache and cache.merges[layer])
        return {i: norm(tokens[int(i)]) for i, norm in self.norms.items() if tokens[int(i)] is not None}

    def predict(self, embeds: dict[str, Tensor], n: int, cache: Cache | None = None) -> Tensor:
        """Logits (b n num_tokens) from the outputs of the predicting levels, each mapped at its own rate."""
        logits = 0
        weights = self.to_logits.weight.split([self.dims[i] for i in self.heads], dim=1)
        for i, weight in zip(self.heads, weights, strict=True):
            part = F.linear(embeds[str(i)], weight) if str(i) in embeds else cache.logits[i]
            if cache is not None:
                cache.logits[i] = part[:, -1:]
            logits = logits + align(part, self.levels[i].stride, 1, n)
        return logits

    def tail(self, x: Tensor, before: Tensor | None) -> Tensor:
        """Embeddings that the compressions of later bytes still reach, zeros before the first byte."""
        reach = max(self.config.per_level("hierarchies")) - 1
        before = x.new_zeros(len(x), reach, x.shape[-1]) if before is None else before
        return torch.cat((before, x), dim=1)[:, x.shape[1] :]

    def empty_cache(self) -> Cache:
        """A cache for `forward` that has seen nothing."""
        return Cache.empty(self.config.levels, self.config.layers)

    generate = generate
    stream = stream

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
