"""The hierarchical transformer: parallel levels of a byte stream, merged layer by layer to predict the next byte.

Notable features:
- levels at different rates, in parallel or nested; each reads only bytes before those it predicts
- units of a fixed stride, or units that end at words
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

Levels whose units end at words have at most as many of them, and each ends right after a word (model/words.py).

Axes: b batch, n bytes, k units of a level, d channels, h heads, v vocabulary, c bytes of a compression; in attention,
i queries and j keys.
"""

from collections import defaultdict

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from model.attention import Attention
from model.block import FeedForward
from model.config import ModelConfig
from model.embedding import ByteEmbedding
from model.generation.cache import Cache, LevelCache, MergeCache, keep_latest, prepend_history
from model.generation.sampling import generate, stream
from model.hub import HubModel
from model.level import Level
from model.losses import Losses, NextLatent, build_losses, has_losses
from model.merge import MERGES, LevelUnits, LinearMerge, Merge, Tokens
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

        # Levels by the layer that they begin with; those that read the states of level 1 come after it.
        self.beginning_levels: dict[int, list[int]] = defaultdict(list)
        for i in sorted(range(len(levels)), key=lambda i: levels[i].reads_states):
            self.beginning_levels[levels[i].first_layer].append(i)
        self.level_of_bytes = next((i for i, level in enumerate(levels) if level.compression == 1), -1)

        self.embedding = ByteEmbedding(config)
        self.levels = TypedModuleList(Level(level, config) for level in levels)
        merge_layers = self.merge_layers()
        self.merges = TypedModuleDict(
            {str(layer): self.build_merge(layer, is_last=layer == merge_layers[-1]) for layer in merge_layers}
        )
        dim_out = sum(levels[i].dim for i in self.predicting_levels)
        self.to_logits = nn.Linear(dim_out, config.num_tokens, bias=False)
        self.losses = build_losses(config)
        self.norms = TypedModuleDict({str(i): nn.LayerNorm(levels[i].dim) for i in self.levels_with_readers()})
        init_weights(self)

    def merge_layers(self) -> list[int]:
        """Layers after which levels are merged: before each layer of a level that is merged into, and at the end."""
        if self.config.merge_layers is not None:
            return list(self.config.merge_layers)
        layers = {self.config.num_layers - 1}
        for i in self.merge_targets:
            layers |= {layer - 1 for layer in self.levels[i].layers if layer > 0}
        return sorted(layer for layer in layers if self.config.can_meet_after(layer))

    def build_merge(self, layer: int, is_last: bool) -> Merge | LinearMerge:
        """The merge after a layer, of the levels that have tokens by then."""
        sources = self.config.begun_after(layer)
        targets = tuple(i for i in self.merge_targets if i in sources)
        if self.config.merge_type == "linear" and is_last:  # no map for levels that nothing reads any more
            targets = tuple(i for i in targets if i in self.levels_with_readers())
        return MERGES[self.config.merge_type](self.config.levels, sources, targets)

    def levels_with_readers(self) -> list[int]:
        """Levels whose final outputs are read, by the logits or by a loss."""
        return [i for i, level in enumerate(self.config.levels) if level.predicts or has_losses(level)]

    def forward(self, ids: Tensor, return_loss: bool = False, cache: Cache | None = None) -> Tensor | tuple:
        """Logits of the byte after each of ids: (b n) -> (b n num_tokens), for any n.

        Args:
            return_loss: predict the last n of ids (b n+1) from the first n; returns the weighted sum of all losses, and
                the parts of it as `Losses`.
            cache: continue after the bytes that it has read, see `Cache`. Logits are those of one full pass.

        Raises:
            UserError: for ids that are no bytes or too few, for several bytes a row where the cache takes only one,
                or for a loss with a cache.
        """
        if return_loss and cache is not None:
            raise UserError("pass either return_loss or a cache")
        ids = self.checked(ids, least=2 if return_loss else 1, in_range=cache is None or cache.is_empty)
        if return_loss:
            ids, labels = ids[:, :-1], ids[:, 1:]

        x = self.embed_bytes(ids, cache)  # bytes + n-grams + matches
        units = self.cut(ids, cache)  # where the units of each level end
        outputs = self.run_levels(x, units, cache)  # blocks and merges, layer by layer
        logits = self.predict(outputs, units, cache)
        if cache is not None:
            cache.advance(ids.shape[1])

        if not return_loss:
            return logits
        return self.compute_losses(logits, outputs, units, ids, labels)

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
        if cache is not None and n > 1:
            self.check_takes_several(cache, n)

        history = max(self.config.per_level("hierarchies")) - 1
        x = self.embedding(ids, cache)
        x = prepend_history(x, history, None if cache is None else cache.recent_embeddings)
        if cache is not None:
            cache.recent_embeddings = x[:, x.shape[1] - history :]
        return x

    def check_takes_several(self, cache: Cache, n: int) -> None:
        """Raise a UserError if a cache does not take n bytes a row at once."""
        if cache.position is not None:
            raise UserError(Mistake("ids", f"{n} bytes a row", "1 once steps are recorded"))
        period = self.config.period
        if cache.length % period != 0:
            allowed = f"1 after {cache.length} bytes, which are no multiple of {period}"
            raise UserError(Mistake("ids", f"{n} bytes a row", allowed))

    def cut(self, ids: Tensor, cache: Cache | None = None) -> LevelUnits:
        """The units of ids (b n) by level; those of the next bytes, if the cache has read others before."""
        units: LevelUnits = {}
        for i, level in enumerate(self.levels):
            if cache is None:
                units[i] = level.segments.cut(ids)
            else:
                units[i] = level.cut(ids, cache, cache.levels.setdefault(i, LevelCache()))
        return units

    def run_levels(self, x: Tensor, units: LevelUnits, cache: Cache | None = None) -> Tokens:
        """Outputs (b k d) of the levels that have a unit ending in the last n bytes, by level.

        Args:
            x: embeddings of the n bytes, after those of earlier bytes, as `embed_bytes` returns them.
            units: how each level cuts the n bytes.
        """
        level_caches = {i: None if cache is None else cache.levels[i] for i in units}
        cos_sin: dict[int, Tensor] = {}
        for i, level in enumerate(self.levels):
            if units[i].runs and level.attends:
                cos_sin[i] = level.rotary_table(units[i], level_caches[i])

        # Layer by layer: the levels that begin with it, a block for each level, then the merge.
        tokens: Tokens = {}
        for layer in range(self.config.num_layers):
            for i in self.beginning_levels.get(layer, []):
                level = self.levels[i]
                features = x
                if level.reads_states:
                    features = level.states_to_compress(tokens[self.level_of_bytes], level_caches[i])
                if units[i].runs:
                    tokens[i] = level.compress_bytes(features, units[i])
            for i in tokens:
                tokens[i] = self.levels[i].run_layer(layer, tokens[i], cos_sin.get(i), level_caches[i], units[i])
            if str(layer) in self.merges:
                merge_cache = None if cache is None else cache.merges.setdefault(layer, MergeCache())
                tokens = self.merges[str(layer)](tokens, units, merge_cache)

        return {i: self.norms[str(i)](tokens[i]) for i in tokens if str(i) in self.norms}

    def predict(self, outputs: Tokens, units: LevelUnits, cache: Cache | None = None) -> Tensor:
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
                if cache is not None:
                    part = keep_latest(cache.logits, i, part, units[i])
            else:
                assert cache is not None
                part = cache.logits[i]
            logits = logits + units[i].up(part)
        return logits

    def compute_losses(
        self, logits: Tensor, outputs: Tokens, units: LevelUnits, ids: Tensor, labels: Tensor
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
                part = module(outputs[int(i)], units[int(i)], ids, labels, byte_embeddings)
                loss = loss + module.loss_weight * part
                by_level[f"{name}/{module.level.compression}x"] = part.detach()
                sums[name] = sums.get(name, torch.zeros_like(part)) + part.detach()
        return loss, Losses(cross_entropy.detach(), **sums, by_level=by_level)


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
        elif isinstance(module, LinearMerge):
            for to_out in module.to_out.values():
                nn.init.zeros_(to_out.weight)
