"""The settings of a model, checked once, before anything is built."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cached_property
from math import ceil, lcm
from typing import Any

from model.attend import BACKENDS
from model.segments import FixedStride
from model.words import WordEnds
from utils.checks import is_increasing, is_number, require


@dataclass(frozen=True)
class Check:
    """What a setting may be: in words, and as a test of one value."""

    allowed: str
    fits: Callable[[Any], bool]


def within(low: int, high: int) -> Check:
    """A whole number from `low` to `high`."""
    return Check(f"{low} to {high:,}", lambda value: is_number(value, low, int) and value <= high)


def at_least(low: int) -> Check:
    """A whole number from `low` up, as far as PyTorch counts many things."""
    return Check(f"at least {low}, below 2^31", lambda value: is_number(value, low, int) and value < 2**31)


def or_null(check: Check) -> Check:
    """What another check allows, or null."""
    return Check(f"null, or {check.allowed}", lambda value: value is None or check.fits(value))


def one_of(*names: str) -> Check:
    """One of several names."""
    return Check(f"{', '.join(names[:-1])} or {names[-1]}", lambda value: value in names)


def increasing(low: int) -> Check:
    """A list of increasing whole numbers from `low` up."""
    return Check(f"a list of increasing whole numbers from {low}, or []", lambda value: is_increasing(value, low))


DEEPEST = 10_000  # layers
DEPTH = Check(
    f"1 to {DEEPEST:,} layers, or a list of their indices for each level, such as [[0, 5], [1, 2]]",
    lambda value: within(1, DEEPEST).fits(value) or (is_increasing(value, 0) and bool(value) and value[-1] < DEEPEST),
)
WIDEST_HEAD = 65_536
EVEN = Check(
    f"an even number, 2 to {WIDEST_HEAD:,}", lambda value: within(2, WIDEST_HEAD).fits(value) and value % 2 == 0
)
FACTOR = Check("above 0, at most 1,000", lambda value: is_number(value, 0) and 0 < value <= 1000)
NOT_NEGATIVE = Check("0 or above", lambda value: is_number(value, 0))
PROBABILITY = Check("0 to below 1", lambda value: is_number(value, 0) and value < 1)
YES_OR_NO = Check("true or false", lambda value: isinstance(value, bool))
WINDOW = Check("null, or 0 and above", or_null(at_least(0)).fits)
ANYTHING = Check("anything", lambda value: True)  # checked by a method of its own


def model_setting(default: Any, check: Check) -> Any:
    """A field with one value for the whole model."""
    return field(default=default, metadata={"check": check, "per_level": False})


def level_setting(default: Any, check: Check) -> Any:
    """A field that takes one value for all levels, or one for each of `hierarchies`."""
    return field(default=default, metadata={"check": check, "per_level": True})


@dataclass(frozen=True)
class LevelConfig:
    """One level: its own values of the per-level settings of `ModelConfig`, and what follows from them."""

    compression: int
    """bytes that one token compresses, c"""
    segments: FixedStride | WordEnds
    """where its units end"""
    dim: int
    """width of its residual stream"""
    layers: tuple[int, ...]
    """layers of the model in which it runs a block"""
    first_layer: int
    """the layer before which its tokens are made of the bytes"""
    attention_layers: tuple[int, ...]
    """those of its layers that attend"""
    window: int
    """keys that a query sees in its own chain, itself included; 0 = no attention"""
    dim_head: int
    heads: int
    kv_heads: int
    ff_mult: float
    compress_type: str
    reads_states: bool
    """whether its tokens are made of level 1's states, rather than of the bytes' embeddings"""
    compress_mult: float
    predicts: bool
    """whether logits are read from it"""
    is_merge_target: bool
    """whether the other levels are merged into it"""
    loss_weights: dict[str, float]
    """weight of each auxiliary loss, by its name in `Losses`"""

    @property
    def stride(self) -> int:
        """Bytes between two of its outputs; at least so many on average, if its units end at words."""
        return self.segments.stride

    @property
    def chains(self) -> int:
        """Number of interleaved sequences of tokens that attend separately: compression / stride.

        With a compression of 4 and a stride of 2, neighbouring tokens share two bytes. Then there are two chains, the
        tokens 0, 2, 4 … and the tokens 1, 3, 5 …, within each of which tokens do not overlap.
        """
        return self.compression // self.stride

    @property
    def period(self) -> int:
        """Units and chains from a multiple of this byte on do not depend on the bytes before it."""
        return lcm(self.compression, self.segments.period)

    @property
    def longest_token(self) -> int:
        """Bytes that a token is made of, or that its unit has, at most."""
        return max(self.compression, self.segments.longest)

    def tokens_in_chain(self, n: int) -> int:
        """Tokens of the longest chain in n bytes."""
        return ceil(self.segments.count(n) / self.chains)


# Settings that hold the weight of an auxiliary loss, by the loss's name in `Losses`.
LOSS_WEIGHTS = {
    "reconstruction": "recon_loss_weight",
    "prophet": "prophet_loss_weight",
    "next_latent": "next_latent_loss_weight",
    "quantizer": "quantizer_loss_weight",
}


@dataclass(frozen=True)
class ModelConfig:
    """Settings of a `HierarchicalTransformer`. "Per level" takes one value, or one for each of `hierarchies`.

    Raises:
        UserError: a ValueError that names every setting that does not fit, its value, and what is allowed.
    """

    # The bytes and what is looked up for each of them.
    num_tokens: int = model_setting(256, at_least(2))
    """vocabulary size; 256 for bytes, none of them reserved"""
    embed_dim: int | None = model_setting(None, or_null(at_least(1)))
    """width of the embedding of each byte, n-gram and match; null = the width of the finest level"""
    ngrams: tuple[int, ...] = model_setting((), increasing(2))
    """lengths of the n-grams, such as [2, 3, 4], whose embeddings are added to each byte's (arXiv 2412.09871)"""
    ngram_buckets: int = model_setting(16384, at_least(1))
    """rows of the hash table of each n-gram length"""
    ngram_dropout: float = model_setting(0.0, PROBABILITY)
    """probability that training drops an n-gram's embedding, against memorising rare n-grams"""
    matches: tuple[int, ...] = model_setting((), increasing(2))
    """context lengths, in bytes: embed the byte that followed the latest earlier occurrence within seq_len"""
    word_matches: tuple[int, ...] = model_setting((), increasing(0))
    """the same for the current word after this many whole words, such as [0, 1, 2]"""
    matches_per_context: int = model_setting(1, at_least(1))
    """earlier occurrences that are looked up for each of matches and word_matches, the latest first"""

    # The levels.
    hierarchies: int | tuple[int, ...] = model_setting(1, ANYTHING)
    """compression of each level, in bytes a token: distinct whole numbers, such as [1, 4]"""
    hierarchical_stride: int | tuple[int, ...] | None = level_setting(None, at_least(1))
    """bytes between two outputs of a level: a divisor of its compression; null = the compression itself; per level"""
    boundaries: str | tuple[str, ...] = level_setting("stride", one_of("stride", "words"))
    """where a coarse level's units end: stride, at equal distances, or words, right after one or several, with as many
    units as a stride has, at most (arXiv 2404.14408); per level"""
    dim: int | tuple[int, ...] = level_setting(256, at_least(2))
    """width of the residual stream, per level"""
    depth: int | tuple[int | tuple[int, ...], ...] = level_setting(4, DEPTH)
    """layers in which a level runs a block: how many, evenly spaced, or which, as in [[0, 3], [1, 2]]; per level"""
    compress_type: str | tuple[str, ...] = level_setting("conv", one_of("conv", "mean", "attention", "last"))
    """how bytes become a level's tokens: conv, mean or attention over its bytes, or the last byte alone; per level"""
    compress_from: str | tuple[str, ...] = level_setting("embeddings", one_of("embeddings", "states"))
    """what they are made of: the bytes' embeddings, or the states of level 1 before the level's first layer (arXiv
    2404.14408, 2506.14761, 2507.07955); per level"""
    compress_mult: float | tuple[float, ...] = level_setting(1.0, FACTOR)
    """hidden width of a compression by convolution, as a multiple of dim, per level"""
    ff_mult: float | tuple[float, ...] = level_setting(4.0, FACTOR)
    """hidden width of the feed-forward, as a multiple of dim, per level"""
    dropout: float = model_setting(0.0, PROBABILITY)
    """dropout after attention and after the feed-forward"""

    # Attention.
    seq_len: int = model_setting(512, at_least(1))
    """bytes of context in training; a level without a window never looks back further than this"""
    window_sizes: int | tuple[int | None, ...] | None = level_setting(None, WINDOW)
    """keys that a query sees, itself included; null = all of seq_len, 0 = no attention; per level"""
    attn_depth: int | tuple[int | None, ...] | None = level_setting(None, or_null(at_least(1)))
    """how many of a level's layers attend, the last ones; null = all; per level"""
    dim_head: int | tuple[int, ...] = level_setting(64, EVEN)
    """width of an attention head, per level; even, because rotary positions rotate pairs of channels"""
    heads: int | tuple[int, ...] = level_setting(4, at_least(1))
    """attention heads, per level"""
    kv_heads: int | tuple[int | None, ...] | None = level_setting(None, or_null(at_least(1)))
    """heads of keys and values, each shared by several query heads (arXiv 2305.13245), per level; null = heads"""
    qk_norm: bool = model_setting(False, YES_OR_NO)
    """normalise queries and keys in each head (arXiv 2010.04245)"""
    rotary_xpos: bool = model_setting(False, YES_OR_NO)
    """make attention scores decay with distance (xPos, arXiv 2212.10554)"""
    attention: str = model_setting("auto", one_of("auto", *BACKENDS))
    """what computes attention, all of it with the same result: auto picks by shape and device; plain, sdpa (PyTorch's
    fused kernels), block_local (windows cut into blocks) or flex (flex attention, on a GPU) forces one"""

    # Where levels meet, and which of them predict.
    merge_layers: tuple[int, ...] | None = model_setting(None, or_null(increasing(0)))
    """layers after which levels meet; null = before each layer of a level that is merged into, and after the last"""
    merge_type: str = model_setting("network", one_of("network", "linear"))
    """how they meet: network, of two layers, over all levels together, or linear, a linear map of each other level"""
    hierarchy_merge_all: bool = model_setting(False, YES_OR_NO)
    """merge into every level, not only into the predicting one"""
    predict_hierarchy: int | None = model_setting(None, or_null(at_least(1)))
    """compression of the level that predicts and is merged into; null = the finest"""
    predict_use_all_hierarchy: bool = model_setting(False, YES_OR_NO)
    """predict from the outputs of all levels together"""

    # Auxiliary losses. A weight of 0 builds nothing.
    recon_loss_weight: float | tuple[float, ...] = level_setting(0.0, NOT_NEGATIVE)
    """weight of a coarse level's reconstruction of the bytes it compressed, per level"""
    prophet_loss_weight: float | tuple[float, ...] = level_setting(0.0, NOT_NEGATIVE)
    """weight of a coarse level's prediction of as many next bytes as it compresses, per level"""
    next_latent_loss_weight: float | tuple[float, ...] = level_setting(0.0, NOT_NEGATIVE)
    """weight of a level's prediction of its own next output (arXiv 2511.05963), per level"""
    num_rollouts: int = model_setting(1, at_least(1))
    """how many outputs ahead the next-latent loss predicts"""
    quantizer_loss_weight: float | tuple[float, ...] = level_setting(0.0, NOT_NEGATIVE)
    """weight of a coarse level's prediction of a random code of the next bytes (arXiv 2202.01855), per level"""

    def __post_init__(self):
        for each in fields(self):  # JSON and YAML have lists
            object.__setattr__(self, each.name, as_tuple(getattr(self, each.name)))
        self._check_hierarchies()
        self._check_values()
        self._check_combinations()

    def _check_hierarchies(self) -> None:
        """First, because every per-level setting needs the number of levels."""
        compressions = self.per_level("hierarchies")
        legal = all(is_number(compression, 1, int) for compression in compressions)
        fits = legal and len(set(compressions)) == len(compressions) > 0
        require(self.to_dict(), hierarchies=(fits, "one or more distinct whole numbers, each at least 1"))

    def _check_values(self) -> None:
        """Each setting by itself, against the check beside its field."""
        compressions = self.per_level("hierarchies")
        how_many = f"one for all or one for each of the {len(compressions)} hierarchies {list(compressions)}"
        checks = {}
        for each in fields(self):
            check = each.metadata["check"]
            if each.metadata["per_level"]:
                values = self.per_level(each.name)
                fits = len(values) == len(compressions) and all(map(check.fits, values))
                checks[each.name] = fits, f"{check.allowed}; {how_many}"
            else:
                checks[each.name] = check.fits(getattr(self, each.name)), check.allowed

        longest = max(compressions)
        if checks["seq_len"][0]:
            checks["seq_len"] = self.seq_len >= longest, f"at least the largest compression, {longest}"
        known = self.predict_hierarchy is None or self.predict_hierarchy in compressions
        checks["predict_hierarchy"] = known, f"null or one of {list(compressions)}"
        require(self.to_dict(), **checks)

    def _check_combinations(self) -> None:
        """Settings against one another, once each is known to be legal by itself."""
        settings = self.to_dict()
        require(settings, hierarchical_stride=self._strides_divide())
        require(settings, hierarchical_stride=self._words_have_one_stride())
        strides_from = "hierarchies" if self.hierarchical_stride is None else "hierarchical_stride"
        require(
            settings,
            **{strides_from: self._each_byte_is_predicted()},
            kv_heads=self._heads_share_evenly(),
            attn_depth=self._attention_has_layers(),
            compress_from=self._states_exist(),
            merge_layers=self._merges_are_read(),
            window_sizes=self._windows_fit(),
            attention=self._heads_are_wide_enough(),
        )

    # Each of these says whether settings fit one another, and which values would.

    def _strides_divide(self) -> tuple[bool, str]:
        compressions = self.per_level("hierarchies")
        pairs = zip(compressions, self.per_level("hierarchical_stride"), strict=True)
        return all(c % s == 0 for c, s in pairs), f"divisors of the compressions, {list(compressions)}"

    def _words_have_one_stride(self) -> tuple[bool, str]:
        names = ("hierarchies", "hierarchical_stride", "boundaries")
        levels = zip(*(self.per_level(name) for name in names), strict=True)
        fits = all(s == c for c, s, where in levels if where == "words")
        return fits, "null, or the compression itself for levels with boundaries = words"

    def _each_byte_is_predicted(self) -> tuple[bool, str]:
        fits = any(level.stride == 1 for level in self.levels if level.predicts)
        return fits, "a predicting level with a stride of 1 byte, to predict every byte"

    def _heads_share_evenly(self) -> tuple[bool, str]:
        counts = zip(self.per_level("heads"), self.per_level("kv_heads"), strict=True)
        fits = all(kv_heads is None or heads % kv_heads == 0 for heads, kv_heads in counts)
        return fits, f"divisors of heads = {self.heads}"

    def _attention_has_layers(self) -> tuple[bool, str]:
        depths = [len(level.layers) for level in self.levels]
        pairs = zip(depths, self.per_level("attn_depth"), strict=True)
        fits = all(attn_depth is None or attn_depth <= depth for depth, attn_depth in pairs)
        return fits, f"null, or 1 to {', '.join(map(str, depths))}"

    def _states_exist(self) -> tuple[bool, str]:
        fits = 1 in self.per_level("hierarchies") or "states" not in self.per_level("compress_from")
        return fits, "embeddings, as there is no level 1 whose states could be read"

    def _merges_are_read(self) -> tuple[bool, str]:
        can_meet = [layer for layer in range(self.num_layers) if self.can_meet_after(layer)]
        if not can_meet:
            return not self.merge_layers, "null or [], as there is a single level"

        # What a level that does not predict computes in its last layer must be merged.
        last = max((level.layers[-1] for level in self.levels if not level.predicts), default=0)
        chosen = can_meet if self.merge_layers is None else self.merge_layers
        fits = set(chosen) <= set(can_meet) and max(chosen, default=-1) >= last
        layers = f"layers {can_meet[0]} to {can_meet[-1]}"
        return fits, f"null, or {layers}, the last of them not before layer {last}"

    def _windows_fit(self) -> tuple[bool, str]:
        compressions = self.per_level("hierarchies")
        pairs = zip(self.per_level("window_sizes"), compressions, strict=True)
        fits = all(window is None or window <= self.seq_len // c for window, c in pairs)
        most = ", ".join(f"{self.seq_len // c} at {c}x" for c in compressions)
        return fits, f"null, or 0 to seq_len / compression = {most}"

    def _heads_are_wide_enough(self) -> tuple[bool, str]:
        fits = self.attention != "flex" or min(self.per_level("dim_head")) >= 16
        return fits, f"any other backend, as flex needs a dim_head of at least 16 and has {self.dim_head}"

    def per_level(self, name: str) -> tuple:
        """The values of a setting of levels, or the compressions for "hierarchies": one for each level."""
        value = getattr(self, name)
        if name == "hierarchical_stride" and value is None:
            value = self.hierarchies
        if isinstance(value, tuple):
            return value
        levels = len(self.hierarchies) if isinstance(self.hierarchies, tuple) else 1
        return (value,) * levels

    @property
    def embedding_dim(self) -> int:
        """Width of the embedding of each byte."""
        if self.embed_dim is not None:
            return self.embed_dim
        compressions = self.per_level("hierarchies")
        finest = compressions.index(min(compressions))
        return self.per_level("dim")[finest]

    @property
    def dim_of_bytes(self) -> int:
        """Width of the level with a compression of 1."""
        return self.per_level("dim")[self.per_level("hierarchies").index(1)]

    @property
    def period(self) -> int:
        """Units and chains of all levels from a multiple of this byte on do not depend on the bytes before it."""
        return lcm(*(level.period for level in self.levels))

    @property
    def num_layers(self) -> int:
        """Layers of the model: those of its deepest level."""
        return max(depth[-1] + 1 if isinstance(depth, tuple) else depth for depth in self.per_level("depth"))

    def begun_after(self, layer: int) -> tuple[int, ...]:
        """The levels that have tokens after a layer."""
        return tuple(i for i, level in enumerate(self.levels) if level.first_layer <= layer)

    def can_meet_after(self, layer: int) -> bool:
        """Whether a level that is merged into has tokens after a layer, and another one, too."""
        begun = self.begun_after(layer)
        return len(begun) > 1 and any(self.levels[i].is_merge_target for i in begun)

    @cached_property
    def levels(self) -> tuple[LevelConfig, ...]:
        """The levels, in the order of `hierarchies`."""
        return tuple(self._level(i) for i in range(len(self.per_level("hierarchies"))))

    def _level(self, i: int) -> LevelConfig:
        own = {each.name: self.per_level(each.name)[i] for each in fields(self) if each.metadata["per_level"]}
        compressions = self.per_level("hierarchies")
        compression = compressions[i]

        layers = own["depth"]
        if not isinstance(layers, tuple):
            layers = evenly_spaced(layers, self.num_layers)
        reads_states = own["compress_from"] == "states" and compression > 1
        first_layer = layers[0] if reads_states else 0

        # Without a window a level sees the outputs of the last seq_len bytes.
        window = own["window_sizes"]
        if window is None:
            window = ceil(self.seq_len / compression)  # in a chain, outputs are `compression` bytes apart
        attention_depth = len(layers) if own["attn_depth"] is None else own["attn_depth"]
        attention_layers = layers[-attention_depth:] if window > 0 else ()

        follows_text = own["boundaries"] == "words" and compression > 1  # else every byte is a unit
        segments = WordEnds(compression) if follows_text else FixedStride(own["hierarchical_stride"])

        predicting = min(compressions) if self.predict_hierarchy is None else self.predict_hierarchy
        return LevelConfig(
            compression=compression,
            segments=segments,
            dim=own["dim"],
            layers=layers,
            first_layer=first_layer,
            attention_layers=attention_layers,
            window=window,
            dim_head=own["dim_head"],
            heads=own["heads"],
            kv_heads=own["heads"] if own["kv_heads"] is None else own["kv_heads"],
            ff_mult=own["ff_mult"],
            compress_type=own["compress_type"],
            reads_states=reads_states,
            compress_mult=own["compress_mult"],
            predicts=compression == predicting or self.predict_use_all_hierarchy,
            is_merge_target=compression == predicting or self.hierarchy_merge_all,
            loss_weights={name: own[option] for name, option in LOSS_WEIGHTS.items()},
        )

    def to_dict(self) -> dict:
        """Plain JSON values, one for each setting."""
        return {each.name: as_list(getattr(self, each.name)) for each in fields(self)}


def evenly_spaced(count: int, layers: int) -> tuple[int, ...]:
    """So many of a model's layers, evenly spaced, the last one among them."""
    before = [layer * count // layers for layer in range(layers + 1)]
    return tuple(layer for layer in range(layers) if before[layer + 1] > before[layer])


def as_tuple(value: Any) -> Any:
    """A list as a tuple, the lists in it as well; anything else as it is."""
    return tuple(map(as_tuple, value)) if isinstance(value, list | tuple) else value


def as_list(value: Any) -> Any:
    """A tuple as a list, the tuples in it as well; anything else as it is."""
    return list(map(as_list, value)) if isinstance(value, list | tuple) else value
