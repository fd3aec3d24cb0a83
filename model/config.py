"""What a model is made of, checked once, before anything is built."""

from dataclasses import dataclass
from math import ceil
from types import SimpleNamespace

from utils.checks import is_increasing, is_number, require

# What each level's value of an argument may be: in words, and as a test of the value v on a level of compression c.
PER_LEVEL = {
    "dim": ("at least 2", lambda v, c: is_number(v, 2, int)),
    **dict.fromkeys(("depth", "heads"), ("at least 1", lambda v, c: is_number(v, 1, int))),
    "attn_depth": ("null, or at least 1", lambda v, c: v is None or is_number(v, 1, int)),
    "dim_head": ("an even number, at least 2", lambda v, c: is_number(v, 2, int) and v % 2 == 0),
    "kv_heads": ("null, or at least 1", lambda v, c: v is None or is_number(v, 1, int)),
    **dict.fromkeys(("ff_mult", "compress_mult"), ("above 0", lambda v, c: is_number(v, 0) and v > 0)),
    "compress_type": ("conv, mean or attention", lambda v, c: v in ("conv", "mean", "attention")),
    "window_sizes": ("null, or 0 and above", lambda v, c: v is None or is_number(v, 0, int)),
    "hierarchical_stride": ("a power of two up to the compression", lambda v, c: is_number(v, 1, int) and c % v == 0),
}


class LevelConfig(SimpleNamespace):
    """One level's values of the arguments in `PER_LEVEL`, and what follows from them: its compression and stride, the
    interleaved `chains` that it attends along, axially, where the one is above the other, `layers` that it takes part
    in and those `attending`, `window` of keys of its own chain, and whether it `predicts` and is `merged` into."""


@dataclass(frozen=True)
class ModelConfig:
    """Arguments of `HierarchicalTransformer`. "Per level" takes one value, or one for each of `hierarchies`."""

    num_tokens: int = 256
    """vocabulary; 256 for bytes, none of them reserved"""
    ngrams: tuple[int, ...] = ()
    """orders of the n-grams, such as [2, 3, 4], whose embeddings are added to each byte's (arXiv 2412.09871)"""
    ngram_rows: int = 16384
    """rows of the table of each order, in which n-grams are found by hash"""
    ngram_dropout: float = 0.0
    """probability with which training leaves out an n-gram, lest rare ones be learnt by heart"""
    matches: tuple[int, ...] = ()
    """orders of the n-grams of which the byte that followed last time, within seq_len, is embedded and added, too"""
    word_matches: tuple[int, ...] = ()
    """the same for words: how many before the present one have to be as last time, such as [0, 1, 2]"""
    match_places: int = 1
    """how many of the latest places are looked at, for each of matches and word_matches"""
    dim: int | tuple[int, ...] = 256
    """width of the residual stream, per level"""
    depth: int | tuple[int, ...] = 4
    """layers that a level runs a block in, per level; a shallower level sits out layers, spread evenly"""
    attn_depth: int | tuple[int | None, ...] | None = None
    """how many of a level's layers, its last ones, have attention beside the feed-forward, per level; all when null"""
    seq_len: int = 512
    """bytes of context in training; a level without a window never looks back further than this"""
    dim_head: int | tuple[int, ...] = 64
    """width of one attention head, per level; even, because rotary positions turn pairs"""
    heads: int | tuple[int, ...] = 4
    """attention heads, per level"""
    kv_heads: int | tuple[int | None, ...] | None = None
    """heads of keys and values, each shared by as many query heads (arXiv 2305.13245), per level; all when null"""
    qk_norm: bool = False
    """norm queries and keys, head by head (arXiv 2010.04245)"""
    ff_mult: float | tuple[float, ...] = 4.0
    """hidden width of the feed-forward over dim, per level"""
    compress_type: str | tuple[str, ...] = "conv"
    """how bytes become a level's tokens: conv, mean or attention, per level"""
    compress_mult: float | tuple[float, ...] = 1.0
    """hidden width of the compression by convolution over the embedding's width, per level"""
    hierarchies: int | tuple[int, ...] = 1
    """compression of each level: distinct powers of two, such as [1, 4]"""
    hierarchical_stride: int | tuple[int, ...] | None = None
    """bytes between two outputs of a level: a power of two up to its compression, which it is when null; per level"""
    window_sizes: int | tuple[int | None, ...] | None = None
    """keys a query sees, itself included; null = all of seq_len, 0 = no attention; per level"""
    hierarchy_merge_all: bool = False
    """merge into every level, not only into the predicting one; each time before a level that is merged into goes on"""
    predict_hierarchy: int | None = None
    """compression of the level that predicts (and that is merged into); the finest when null"""
    predict_use_all_hierarchy: bool = False
    """predict from the outputs of all levels together"""
    recon_loss_weight: float | tuple[float, ...] = 0.0
    """weight of a coarse level's giving back the bytes it compressed, per level; a loss of weight 0 builds nothing"""
    prophet_loss_weight: float | tuple[float, ...] = 0.0
    """weight of a coarse level's predicting as many bytes ahead as it compresses, per level"""
    next_latent_loss_weight: float | tuple[float, ...] = 0.0
    """weight of a level's predicting its own next output (arXiv 2511.05963), per level"""
    num_rollouts: int = 1
    """steps that the prediction of outputs goes ahead"""
    quantizer_loss_weight: float | tuple[float, ...] = 0.0
    """weight of a coarse level's predicting the random code of the bytes ahead (arXiv 2202.01855), per level"""
    dropout: float = 0.0
    """dropout after attention and feed-forward"""
    rotary_xpos: bool = False
    """let attention fade with distance as in arXiv 2212.10554"""
    use_flash_attn: bool = True
    """attention through PyTorch's fused kernels where they are faster; false takes the plain path, for reference"""

    def __post_init__(self):
        for name, value in vars(self).items():
            object.__setattr__(self, name, tuple(value) if isinstance(value, list) else value)  # JSON gives lists
        given, hierarchies = self.to_dict(), list(self.per_level("hierarchies"))
        legal = all(is_number(c, 1, int) and c.bit_count() == 1 for c in hierarchies)
        distinct = len(set(hierarchies)) == len(hierarchies) > 0
        require(given, hierarchies=(legal and distinct, "one or more distinct powers of two"))

        each = f"one for all or one for each of the {len(hierarchies)} hierarchies {hierarchies}"
        checks, least = {}, max(hierarchies)
        for name, (allowed, is_legal) in PER_LEVEL.items():
            values = self.per_level(name)
            fits = len(values) == len(hierarchies) and all(map(is_legal, values, hierarchies))
            checks[name] = fits, f"{allowed}; {each}"
        checks["seq_len"] = is_number(self.seq_len, least, int), f"at least the largest compression, {least}"
        for name, low in {"ngrams": 2, "matches": 2, "word_matches": 0}.items():
            checks[name] = is_increasing(given[name], low), f"a list of increasing whole numbers from {low}, or []"
        for name, low in {"num_tokens": 2, "ngram_rows": 1, "match_places": 1, "num_rollouts": 1}.items():
            checks[name] = is_number(given[name], low, int), f"at least {low}"
        checks["predict_hierarchy"] = self.predict_hierarchy in (None, *hierarchies), f"null or one of {hierarchies}"
        checks |= {n: (is_number(given[n], 0) and given[n] < 1, "0 to below 1") for n in ("dropout", "ngram_dropout")}
        require(given, **checks)  # each by itself, and now beside one another

        most = ", ".join(f"{self.seq_len // c} at {c}x" for c in hierarchies)
        within = all((level.window_sizes or 0) <= self.seq_len // level.compression for level in self.levels)
        checks["window_sizes"] = within, f"null, or 0 to seq_len / compression = {most}"
        checks["attn_depth"] = all(x.depth >= (x.attn_depth or 1) for x in self.levels), f"null, or 1 to {self.depth}"
        checks["kv_heads"] = all(x.heads % x.kv_heads == 0 for x in self.levels), f"divisors of heads = {self.heads}"
        every_byte = any(level.stride == 1 for level in self.levels if level.predicts)
        checks["hierarchical_stride"] = every_byte, "a predicting level of stride 1, for each byte to be predicted"
        require(given, **checks)

    def per_level(self, name: str) -> tuple:
        """An argument's value for each level."""
        unset = name == "hierarchical_stride" and self.hierarchical_stride is None
        value = self.hierarchies if unset else getattr(self, name)
        levels = len(self.hierarchies) if isinstance(self.hierarchies, tuple) else 1
        return value if isinstance(value, tuple) else (value,) * levels

    @property
    def levels(self) -> tuple[LevelConfig, ...]:
        """The levels, one object each. A level without a window sees the outputs of the last `seq_len` bytes."""
        levels, layers, hierarchies = [], max(self.per_level("depth")), self.per_level("hierarchies")
        for i, c in enumerate(hierarchies):
            level = LevelConfig(compression=c, **{name: self.per_level(name)[i] for name in PER_LEVEL})
            level.stride, level.chains = level.hierarchical_stride, c // level.hierarchical_stride
            level.layers = [k for k in range(layers) if (k + 1) * level.depth // layers > k * level.depth // layers]
            level.window = ceil(self.seq_len / c) if level.window_sizes is None else level.window_sizes
            level.attending = level.layers[-(level.attn_depth or level.depth) :] if level.window else []
            level.kv_heads = level.kv_heads or level.heads
            chosen = c == (self.predict_hierarchy or min(hierarchies))
            level.predicts, level.merged = chosen or self.predict_use_all_hierarchy, chosen or self.hierarchy_merge_all
            levels.append(level)
        return tuple(levels)

    def to_dict(self) -> dict:
        """Plain JSON values, one for each argument."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}


PER_LEVEL |= {n: ("0 or above", lambda v, c: is_number(v, 0)) for n in vars(ModelConfig) if n.endswith("_loss_weight")}
