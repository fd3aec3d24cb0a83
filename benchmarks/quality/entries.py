"""The contenders of a race and their sizes, and how an entry is made from the arguments of a model."""

from typing import Any

from benchmarks.contenders import preset
from benchmarks.quality.trials import Entry

SHARED: dict[str, Any] = {"num_tokens": 256, "seq_len": 512, "dim_head": 64}  # a preset's own seq_len takes precedence
FLAT = preset("flat")
HIERARCHICAL = preset("enwik8-small")
OUR_TRAINING = {"optimizer": "muon"}

# Levels of the reference: its default, and a coarse level at a stride of 4.
DEFAULT_LEVELS: dict[str, Any] = {"hierarchies": (1, 2), "hierarchical_stride": 1, "window_sizes": (32, 64)}
STRIDE_4_LEVELS: dict[str, Any] = {"hierarchies": (1, 4), "hierarchical_stride": (1, 4), "window_sizes": (64, None)}
HOURGLASS: dict[str, Any] = {"depth": (1, 4, 1), "shorten_factor": 4}
# The options of x-transformers that a current decoder would use.
MODERN: dict[str, Any] = {
    "use_rmsnorm": True,
    "ff_glu": True,
    "ff_swish": True,
    "ff_no_bias": True,
    "shift_tokens": 1,
}

# For each contender and size: a function of benchmarks.contenders, and its arguments in addition to those of SHARED.
SIZES: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {
    ("flat", "128 × 4"): ("ours", FLAT),
    ("flat", "192 × 4"): ("ours", FLAT | {"dim": 192, "heads": 3}),
    ("hierarchical", "128 × 2, 3"): ("ours", HIERARCHICAL),
    ("hierarchical", "192 × 2, 4"): ("ours", HIERARCHICAL | {"dim": 192, "heads": 3, "depth": (2, 4)}),
    ("reference", "192 × 4"): ("reference", DEFAULT_LEVELS | {"dim": 192, "depth": 4, "heads": 3}),
    ("reference", "128, 256 × 4, stride 4"): (
        "reference",
        STRIDE_4_LEVELS | {"dim": (128, 256), "depth": 4, "heads": (2, 4), "ff_mult": (2, 4)},
    ),
    ("hourglass", "192 × 1, 4, 1"): ("hourglass", HOURGLASS | {"dim": 192, "heads": 3}),
    ("hourglass", "256 × 1, 4, 1, linear"): (
        "hourglass",
        HOURGLASS | {"dim": 256, "heads": 4, "updown_sample_type": "linear"},
    ),
    ("megabyte", "256, 128, patch 4"): ("megabyte", {"dim": (256, 128), "depth": (5, 3), "heads": 4, "patch": 4}),
    ("megabyte", "320, 192, patch 8"): ("megabyte", {"dim": (320, 192), "depth": (3, 3), "heads": 4, "patch": 8}),
    ("x-transformers", "192 × 4, modern"): ("decoder", MODERN | {"dim": 192, "depth": 4, "heads": 3}),
    ("x-transformers", "256 × 6"): ("decoder", {"dim": 256, "depth": 6, "heads": 4}),
}
CONTENDERS = list(dict.fromkeys(contender for contender, _ in SIZES))

# On a text that is read once nothing is dropped, and tables are large, as size costs memory alone.
SMALL_FLAT: dict[str, Any] = FLAT | {
    "ngrams": (2, 3, 4, 5, 6, 8),
    "ngram_buckets": 65536,
    "ngram_dropout": 0.0,
    "dropout": 0.0,
    "window_sizes": 64,
    "attn_depth": 1,
    "ff_mult": 2,
}
UNITS = preset("quickstart")  # layers over units of eight bytes, and one of the bytes

# What `benchmarks.quality.frontier` races: our own models, by contender and size, with their arguments in addition to
# those of SHARED. Three sizes of each contender. Within minutes small ones win (benchmarks/LOG.md).
FRONTIER_SIZES: dict[tuple[str, str], dict[str, Any]] = {
    ("flat", "128 × 2"): SMALL_FLAT | {"depth": 2},
    ("flat", "128 × 2, ff 4"): SMALL_FLAT | {"depth": 2, "ff_mult": 4},
    ("flat", "128 × 3"): SMALL_FLAT | {"depth": 3},
    ("hierarchical", "128 × 1, 1"): UNITS | {"depth": ((1,), (0,)), "merge_layers": (0,)},
    ("hierarchical", "128 × 2, 1"): UNITS | {"depth": ((2,), (0, 1)), "merge_layers": (1,)},
    ("hierarchical", "128 × 3, 1"): UNITS | {"depth": ((3,), (0, 1, 2)), "merge_layers": (2,)},
}

# What `benchmarks.quality.use_at_scale` compares: bytes that see 128 bytes back, around words that see all words before
# them, and flat models of two kinds and several depths.
BASE_SHARED: dict[str, Any] = {"num_tokens": 256, "seq_len": 4096, "dim_head": 64}
FLAT_KINDS = {"flat, all bytes": None, "flat, 512 bytes": 512}
BASE_WORDS: dict[str, Any] = {
    "dim": (384, 768),
    "heads": (6, 12),
    "hierarchies": (1, 6),
    "boundaries": "words",
    "compress_type": "last",
    "compress_from": "states",
    "merge_type": "linear",
    "depth": ((0, 1, 6, 7), (2, 3, 4, 5)),
    "merge_layers": (5,),
    "window_sizes": (128, None),
}
BASE_FLAT: dict[str, Any] = {"dim": 384, "heads": 6, "hierarchies": 1}
BASE_SCALE: dict[str, dict[str, Any]] = {"words": BASE_SHARED | BASE_WORDS} | {
    f"{kind}, {depth} layers": BASE_SHARED | BASE_FLAT | {"window_sizes": window, "depth": depth}
    for kind, window in FLAT_KINDS.items()
    for depth in (2, 3, 4, 5, 6, 8)
}

# What replaces a model's arguments with --quick.
MINIATURE: dict[str, Any] = {
    "dim": 16,
    "depth": 1,
    "attn_depth": 1,
    "heads": 2,
    "dim_head": 8,
    "seq_len": 32,
    "window_sizes": 2,
    "merge_layers": 0,
}


def make_entry(builder: str, model: dict[str, Any], quick: bool, **train) -> Entry:
    """What a race trains.

    Args:
        builder: a function of `benchmarks.contenders`.
        model: its arguments.
        quick: make a miniature of the model.
        train: settings of training that differ from those that all entries of this builder have.
    """
    if quick:
        model = shrink(model)
    if builder == "ours":
        train = OUR_TRAINING | train
    return Entry(builder, model, train)


def shrink(model: dict[str, Any]) -> dict[str, Any]:
    """A model's arguments with those of MINIATURE, repeated for each level where the model has one per level."""
    small = {}
    for name, value in MINIATURE.items():
        if name not in model:
            continue
        given = model[name]
        small[name] = (value,) * len(given) if isinstance(given, tuple) else value
    return model | small
