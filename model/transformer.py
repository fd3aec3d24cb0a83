"""The hierarchical transformer: parallel levels of a byte stream, merged layer by layer to predict the next byte.

Notable features:
- parallel levels at different rates, each of which reads only bytes that come before those it predicts
- embeddings of hashed n-grams and of a match model, added to each byte's embedding
- token shift, rotary positions, exact sliding windows, grouped-query attention
- merges that cost a coarse level no more than its own tokens
- a generation cache: each byte runs only the levels that have a unit ending there, with the logits of a full pass

Words: a level of compression c has one token for each unit. Units end every s bytes (the stride, by default c), and a
token is made of the c bytes up to the end of its unit. With levels 1 and 4, and eight bytes:

    byte            0   1   2   3   4   5   6   7
    level 1x        0   1   2   3   4   5   6   7     each byte's own token
    level 4x        0   .   .   .   1   .   .   .     token 0 is made of byte 0, token 1 of the bytes 1 to 4
    reads of 4x     0   0   0   0   1   1   1   1     the latest token, in merges and for the logits of the next byte

Axes: b batch, n bytes, k units of a level, d channels, h heads, v vocabulary, c bytes of a compression; in attention,
i queries and j keys.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from model.attention import Attention
from model.block import Block, FeedForward
from model.compress import Compress
from model.config import LevelConfig, ModelConfig
from model.embedding import ByteEmbedding
from model.generation.cache import BlockCache, Cache, LevelCache, MergeCache, UnitPosition, prepend_history
from model.generation.sampling import generate, stream
from model.hub import HubModel
from model.losses import Losses, NextLatent, build_losses
from model.merge import Merge
from model.rotary import XPOS_SCALE_BASE, Rotary
from model.typed import TypedModuleDict, TypedModuleList
from utils.errors import Mistake, UserError


class HierarchicalTransformer(nn.Module, HubModel):
    """A causal language model over bytes on several time scales. Takes the fields of `ModelConfig` as keywords.

    Raises:
        UserError: a ValueError that names every argument that does not fit, its value, and what is allowed.
    """

    # Methods, from model/generation/sampling.py.
    generate = generate
    stream = stream

    def __init__(self, **settings):
        super().__init__()
        config = ModelConfig(**settings)
        levels = config.levels
        self.config = config
        self._hub_mixin_config = config.to_dict()  # what save_pretrained writes, defaults included

        self.predicting_levels = tuple(i for i, level in enumerate(levels) if level.predicts)
        self.merge_targets = tuple(i for i, level in enumerate(levels) if level.is_merge_target)

        self.embedding = ByteEmbedding(config)
        self.levels = TypedModuleList(Level(level, config) for level in levels)
        self.merges = TypedModuleDict({str(layer): Merge(levels, self.merge_targets) for layer in self.merge_layers()})
        dim_out = sum(levels[i].dim for i in self.predicting_levels)
        self.to_logits = nn.Linear(dim_out, config.num_tokens, bias=False)
        self.losses = build_losses(config)
        self.norms = TypedModuleDict({str(i): nn.LayerNorm(levels[i].dim) for i in self.levels_with_readers()})
        init_weights(self)

    def merge_layers(self) -> list[int]:
        """Layers after which levels are merged: before each layer of a level that is merged into, and at the end."""
        if len(self.levels) == 1:
            return []
        layers = {self.config.num_layers - 1}
        for i in self.merge_targets:
            layers |= {layer - 1 for layer in self.levels[i].layers if layer > 0}
        return sorted(layers)

    def levels_with_readers(self) -> list[int]:
        """Levels whose final outputs are read, by the logits or by a loss."""
        readers = set(self.predicting_levels)
        for modules in self.losses.values():
            readers |= {int(i) for i in modules}
        return sorted(readers)

    def forward(self, ids: Tensor, return_loss: bool = False, cache: Cache | None = None) -> Tensor | tuple:
        """Logits of the byte after each of ids: (b n) -> (b n num_tokens), for any n.

        Args:
            return_loss: predict the last n of ids (b n+1) from the first n; returns the weighted sum of all losses, and
                the parts of it as `Losses`.
            cache: continue after the bytes that it has read. Its first call takes any number of bytes, each later call
                one byte a row. Logits are those of one full pass.

        Raises:
            UserError: for ids that are no bytes or too few, for several bytes a row with a cache that is not empty, or
                for a loss with a cache.
        """
        if return_loss and cache is not None:
            raise UserError("pass either return_loss or a cache")
        ids = self.checked(ids, least=2 if return_loss else 1, in_range=cache is None or cache.is_empty)
        if return_loss:
            ids, labels = ids[:, :-1], ids[:, 1:]

        x = self.embed_bytes(ids, cache)  # bytes + n-grams + matches
        outputs = self.run_levels(x, ids.shape[1], cache)  # blocks and merges, layer by layer
        logits = self.predict(outputs, ids.shape[1], cache)
        if cache is not None:
            cache.advance(ids.shape[1])

        if not return_loss:
            return logits
        return self.compute_losses(logits, outputs, ids, labels)

    def checked(self, ids: Tensor, least: int, in_range: bool) -> Tensor:
        """The ids as int64, from any type of whole numbers, such as the uint8 of a corpus.

        Args:
            least: the fewest bytes a row.
            in_range: also check their values, on a CPU. A GPU would have to wait for the answer.

        Raises:
            UserError: if they do not fit.
        """
        is_whole = not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)
        if not is_whole or ids.ndim != 2 or len(ids) < 1 or ids.shape[1] < least:
            got = f"{list(ids.shape)} of {ids.dtype}"
            raise UserError(Mistake("ids", got, f"whole numbers (b n), of one row or more, each of {least} or more"))
        ids = ids.long()
        if in_range and ids.device.type == "cpu" and not torch.compiler.is_compiling():
            lowest, highest = (int(value) for value in ids.aminmax())
            if lowest < 0 or highest >= self.config.num_tokens:
                raise UserError(Mistake("ids", f"{lowest} to {highest}", f"0 to {self.config.num_tokens - 1}"))
        return ids

    def embed_bytes(self, ids: Tensor, cache: Cache | None) -> Tensor:
        """Embeddings of ids (b n), after those of the bytes before them that a compression needs: (b c-1+n d).

        Here c is the largest compression. The embeddings before the first byte are zeros.
        """
        n = ids.shape[1]
        if cache is not None and not cache.is_empty and n != 1:
            raise UserError(Mistake("ids", f"{n} bytes a row", "1 when the cache is not empty"))

        history = max(self.config.per_level("hierarchies")) - 1
        x = self.embedding(ids, cache)
        x = prepend_history(x, history, None if cache is None else cache.recent_embeddings)
        if cache is not None:
            cache.recent_embeddings = x[:, x.shape[1] - history :]
        return x

    def run_levels(self, x: Tensor, n: int, cache: Cache | None = None) -> dict[int, Tensor]:
        """Outputs (b k d) of the levels that have a unit ending in the last n bytes, by level.

        Args:
            x: embeddings of the n bytes, after those of earlier bytes, as `embed_bytes` returns them.
        """
        active = [i for i, level in enumerate(self.levels) if level.is_active(cache)]
        level_caches = {i: None if cache is None else cache.levels.setdefault(i, LevelCache()) for i in active}

        # Each level's tokens, and the rotary table of their positions.
        tokens: dict[int, Tensor] = {}
        cos_sin: dict[int, Tensor] = {}
        positions: dict[int, UnitPosition | None] = {}
        for i in active:
            level = self.levels[i]
            tokens[i] = level.compress_bytes(x, n)
            cos_sin[i] = level.rotary_table(tokens[i].shape[1], cache, level_caches[i])
            positions[i] = level.position(cache)

        # Layer by layer: a block for each level, then the merge.
        for layer in range(self.config.num_layers):
            for i in active:
                tokens[i] = self.levels[i].run_layer(layer, tokens[i], cos_sin[i], level_caches[i], positions[i])
            if str(layer) in self.merges:
                merge_cache = None if cache is None else cache.merges.setdefault(layer, MergeCache())
                tokens = self.merges[str(layer)](tokens, n, merge_cache)

        return {i: self.norms[str(i)](tokens[i]) for i in active if str(i) in self.norms}

    def predict(self, outputs: dict[int, Tensor], n: int, cache: Cache | None = None) -> Tensor:
        """Logits (b n num_tokens), from the outputs of the predicting levels.

        Equals `to_logits` of their outputs, aligned to bytes and concatenated. As in a merge, each level's part of the
        product is computed at its own rate, and the parts are added.
        """
        dims = [self.config.levels[i].dim for i in self.predicting_levels]
        weights = self.to_logits.weight.split(dims, dim=1)
        logits = self.to_logits.weight.new_zeros(())
        for i, weight in zip(self.predicting_levels, weights, strict=True):
            if i in outputs:
                part = F.linear(outputs[i], weight)
            else:
                assert cache is not None
                part = cache.logits[i]
            if cache is not None:
                cache.logits[i] = part[:, -1:]
            logits = logits + self.levels[i].segments.up(part, n)
        return logits

    def compute_losses(
        self, logits: Tensor, outputs: dict[int, Tensor], ids: Tensor, labels: Tensor
    ) -> tuple[Tensor, Losses]:
        """The weighted sum of all losses, and its parts."""
        logits = rearrange(logits, "b n v -> (b n) v")
        cross_entropy = F.cross_entropy(logits.float(), rearrange(labels, "b n -> (b n)"))

        loss = cross_entropy
        sums: dict[str, Tensor] = {}
        by_level: dict[str, Tensor] = {}
        byte_embeddings = self.embedding.byte_emb(ids) if self.losses else None
        for name, modules in self.losses.items():
            for i, module in modules.items():
                part = module(outputs[int(i)], ids, labels, byte_embeddings)
                loss = loss + module.loss_weight * part
                by_level[f"{name}/{module.level.compression}x"] = part.detach()
                sums[name] = sums.get(name, torch.zeros_like(part)) + part.detach()
        return loss, Losses(cross_entropy.detach(), **sums, by_level=by_level)


class Level(nn.Module):
    """One level: its compression of the bytes' embeddings, and a block in each layer that it takes part in."""

    def __init__(self, level: LevelConfig, config: ModelConfig):
        super().__init__()
        self.segments = level.segments
        self.chains = level.chains
        self.layers = level.layers
        self.compress = Compress(config.embedding_dim, level)
        self.norm_in = nn.LayerNorm(level.dim)
        self.rotary = Rotary(level.heads, level.kv_heads, level.dim_head, config.rotary_xpos)
        self.blocks = TypedModuleDict(
            {str(layer): Block(level, config, attends=layer in level.attention_layers) for layer in level.layers}
        )

    def is_active(self, cache: Cache | None) -> bool:
        """Whether one of its units ends in the bytes to come. In a full or first pass one does, at byte 0."""
        return cache is None or cache.is_empty or self.segments.ends_unit(cache.length)

    def compress_bytes(self, x: Tensor, n: int) -> Tensor:
        """Tokens (b k d) of the last n of the bytes' embeddings x."""
        tokens = self.compress(x, n)
        return self.norm_in(tokens.to(x.dtype))  # autocast must not lower the precision of the residual stream

    def position(self, cache: Cache | None) -> UnitPosition | None:
        """Place of the single token of a generation step; None in a first or a full pass."""
        if cache is None or cache.is_empty:
            return None
        chain = self.segments.unit(cache.length) % self.chains
        index = self.segments.unit(cache.offset) // self.chains
        return UnitPosition(int(chain), index)

    def rotary_table(self, count: int, cache: Cache | None, level_cache: LevelCache | None) -> Tensor:
        """Cosines and sines of `count` tokens, from the first one, or from the cache's position on."""
        device = self.rotary.inverse_frequency.device
        if cache is None or level_cache is None or cache.is_empty:
            units = torch.arange(count, device=device)
            middle = count // 2 // self.chains  # xPos scales are closest to 1 around their origin
            if level_cache is not None:
                level_cache.xpos_origin = middle
            return self.rotary(units // self.chains, middle)

        units = torch.arange(count, device=device) + self.segments.unit(cache.offset)
        if self.rotary.xpos:
            self.move_xpos_origin(self.segments.unit(cache.length) // self.chains, level_cache)
        return self.rotary(units // self.chains, level_cache.xpos_origin)

    def move_xpos_origin(self, index: int | Tensor, level_cache: LevelCache) -> None:
        """Rescale the keys in the cache when the current token is far from the origin, before xPos scales overflow.

        The smallest scale is 0.28 for 512 tokens. After 8 times 512 tokens it is 5e-5, well within float32.
        """
        distance = int(index) - level_cache.xpos_origin
        if distance <= 8 * XPOS_SCALE_BASE:
            return
        for block in level_cache.blocks.values():
            for ring in block.rings.values():
                keys, _ = ring.kv.unbind(dim=1)
                keys.mul_(self.rotary.rescale_factor(distance))
        level_cache.xpos_origin = int(index)

    def run_layer(
        self,
        layer: int,
        tokens: Tensor,
        cos_sin: Tensor,
        level_cache: LevelCache | None,
        position: UnitPosition | None,
    ) -> Tensor:
        """Its block of this layer, or nothing if it skips the layer: (b k d) -> (b k d)."""
        if str(layer) not in self.blocks:
            return tokens
        block_cache = None if level_cache is None else level_cache.blocks.setdefault(layer, BlockCache())
        return self.blocks[str(layer)](tokens, cos_sin, block_cache, position)


def init_weights(model: nn.Module) -> None:
    """Initialise the weights.

    | module                                      | weights                                          |
    |---------------------------------------------|--------------------------------------------------|
    | embeddings                                  | normal, standard deviation 0.02                  |
    | linear maps                                 | truncated normal, 1 / sqrt(number of inputs)     |
    | linear maps whose output is added to their  |                                                  |
    | input (`to_out` of the classes below)       | zeros                                            |
    | biases of linear maps                       | zeros                                            |
    | everything else                             | as the modules initialise it themselves          |
    """
    for module in model.modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            nn.init.normal_(module.weight, std=0.02)
        elif isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    for module in model.modules():
        if isinstance(module, Attention | FeedForward | Merge | NextLatent):
            nn.init.zeros_(module.to_out.weight)
