"""What a model is made of, checked once, before anything is built. Imports nothing heavy, so that `--help` is quick."""

from dataclasses import dataclass, fields
from math import ceil

LOSS_WEIGHTS = ("recon_loss_weight", "prophet_loss_weight", "next_latent_loss_weight", "quantizer_loss_weight")


@dataclass(frozen=True)
class LevelConfig:
    """One level of the hierarchy, with every default filled in."""

    compression: int
    stride: int
    dim: int
    heads: int
    dim_head: int
    ff_mult: float
    compress_mult: float
    compress_type: str
    kv_heads: int
    layers: tuple[int, ...]  # those that it takes part in
    window: int  # keys a query sees, itself included, along its own chain; 0 = no attention

    @property
    def chains(self) -> int:
        """With a stride below its compression a level attends axially, in this many interleaved chains."""
        return self.compression // self.stride


@dataclass(frozen=True)
class ModelConfig:
    """Arguments of `HierarchicalTransformer`. "Per level" takes one value, or one for each of `hierarchies`.

    Raises:
        ValueError: naming each argument that does not fit, what it got, and what is allowed.
    """

    num_tokens: int = 256
    """vocabulary; 256 for bytes, none of them reserved"""
    dim: int | tuple[int, ...] = 256
    """width of the residual stream, per level"""
    depth: int | tuple[int, ...] = 4
    """layers that a level runs a block in, per level; a shallower level sits out layers, spread evenly"""
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
    """merge into every level after each layer, not only into the predicting one"""
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
    """attention through PyTorch's fused kernels; false takes the plain path, for reference"""

    def __post_init__(self):
        for field in fields(self):  # JSON gives lists
            if isinstance(getattr(self, field.name), list):
                object.__setattr__(self, field.name, tuple(getattr(self, field.name)))
        problems = _Problems()
        hierarchies = self.per_level("hierarchies")

        power_of_two = all(_is_int(c) and c >= 1 and c & (c - 1) == 0 for c in hierarchies)
        distinct = len(set(hierarchies)) == len(hierarchies) > 0
        problems.check("hierarchies", self.hierarchies, power_of_two and distinct, "one or more distinct powers of two")
        if problems:
            problems.raise_all()

        def per_level(name, allowed, is_legal):
            values, n = self.per_level(name), len(hierarchies)
            allowed = f"{allowed}; one for all or one for each of the {n} hierarchies {list(hierarchies)}"
            fits = len(values) == n and all(map(is_legal, values, hierarchies))
            problems.check(name, getattr(self, name), fits, allowed)

        def positive(v, _):
            return _is_int(v) and v >= 1

        problems.check("num_tokens", self.num_tokens, _is_int(self.num_tokens) and self.num_tokens >= 2, "at least 2")
        seq_len_fits = positive(self.seq_len, 1) and self.seq_len >= max(hierarchies)
        problems.check("seq_len", self.seq_len, seq_len_fits, f"at least the largest compression, {max(hierarchies)}")
        per_level("dim", "at least 2", lambda v, _: _is_int(v) and v >= 2)
        per_level("depth", "at least 1", positive)
        per_level("heads", "at least 1", positive)
        per_level("kv_heads", "null, or at least 1", lambda v, _: v is None or positive(v, _))
        per_level("dim_head", "an even number, at least 2", lambda v, _: _is_int(v) and v >= 2 and v % 2 == 0)
        for name in ("ff_mult", "compress_mult"):
            per_level(name, "above 0", lambda v, _: isinstance(v, (int, float)) and v > 0)
        per_level("compress_type", "conv, mean or attention", lambda v, _: v in ("conv", "mean", "attention"))
        per_level(
            "hierarchical_stride",
            "a power of two from 1 to the level's compression",
            lambda s, c: _is_int(s) and 1 <= s <= c and s & (s - 1) == 0,
        )
        if seq_len_fits:
            per_level(
                "window_sizes",
                "null, or 0 to seq_len / compression = "
                + ", ".join(f"{self.seq_len // c} at {c}x" for c in hierarchies),
                lambda w, c: w is None or (_is_int(w) and 0 <= w <= self.seq_len // c),
            )
        known = self.predict_hierarchy is None or self.predict_hierarchy in hierarchies
        problems.check("predict_hierarchy", self.predict_hierarchy, known, f"null or one of {list(hierarchies)}")
        for name in LOSS_WEIGHTS:
            per_level(name, "0 or above", lambda v, _: isinstance(v, (int, float)) and v >= 0)
        problems.check("num_rollouts", self.num_rollouts, positive(self.num_rollouts, 1), "at least 1")
        problems.check("dropout", self.dropout, 0 <= self.dropout < 1, "0 to below 1")
        problems.raise_all()

        shared = all(h % (kv or h) == 0 for h, kv in zip(*map(self.per_level, ("heads", "kv_heads")), strict=True))
        problems.check("kv_heads", self.kv_heads, shared, f"divisors of heads = {self.heads}")
        strides = self.per_level("hierarchical_stride")
        at_full_rate = 1 in strides if self.predict_use_all_hierarchy else strides[self.predict_index] == 1
        allowed = "a predicting level of stride 1, since its outputs are the predictions of every byte"
        problems.check("hierarchical_stride", self.hierarchical_stride, at_full_rate, allowed)
        problems.raise_all()

    def per_level(self, name: str) -> tuple:
        """An argument's value for each level."""
        value = getattr(self, name)
        if name == "hierarchical_stride" and value is None:
            value = self.hierarchies
        if isinstance(value, tuple):
            return value
        return (value,) if name == "hierarchies" else (value,) * len(self.per_level("hierarchies"))

    @property
    def predict_index(self) -> int:
        """Index of the level that predicts and that the others are merged into."""
        hierarchies = self.per_level("hierarchies")
        return hierarchies.index(min(hierarchies) if self.predict_hierarchy is None else self.predict_hierarchy)

    @property
    def layers(self) -> int:
        """Layers of the whole model: those of its deepest level."""
        return max(self.per_level("depth"))

    @property
    def levels(self) -> tuple[LevelConfig, ...]:
        """The levels, one object each. A level without a window sees the outputs of the last `seq_len` bytes."""
        names = ("hierarchies", "hierarchical_stride", "dim", "heads", "dim_head", "ff_mult")
        names += ("compress_mult", "compress_type", "kv_heads", "depth", "window_sizes")
        levels = []
        for c, s, dim, heads, *others, kv_heads, depth, window in zip(*map(self.per_level, names), strict=True):
            layers = tuple(i for i in range(self.layers) if (i + 1) * depth // self.layers > i * depth // self.layers)
            window = ceil(self.seq_len / c) if window is None else window
            levels.append(LevelConfig(c, s, dim, heads, *others, kv_heads or heads, layers, window))
        return tuple(levels)

    def to_dict(self) -> dict:
        """Plain JSON values, one for each argument."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


class _Problems(list):
    """Collects what is wrong, so that a config wrong in three places is told so once."""

    def check(self, name, got, is_legal, allowed):
        if not is_legal:
            got = list(got) if isinstance(got, tuple) else got
            self.append(f"{name}: got {got}, allowed: {allowed}")

    def raise_all(self):
        if self:
            raise ValueError("; ".join(self))


def _is_int(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
