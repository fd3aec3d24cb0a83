import json
from contextlib import suppress
from dataclasses import fields
from math import inf, nan

import pytest
from hypothesis import given

from model import HierarchicalTransformer, ModelConfig
from tests.model.strategies import model_configs
from utils.errors import UserError

ILLEGAL = [
    ({"num_tokens": 1}, "num_tokens: got 1"),
    ({"depth": 0}, "depth: got 0"),
    ({"seq_len": 10**30}, f"seq_len: got {10**30}, allowed: at least 1, below 2"),
    ({"seq_len": 2, "hierarchies": (1, 4)}, "seq_len: got 2, allowed: at least the largest compression, 4"),
    ({"dim": (8, 8)}, r"dim: got \[8, 8\]"),
    ({"dim": 0}, "dim: got 0"),
    ({"heads": (4, 4, 4), "hierarchies": (1, 4)}, r"heads: got \[4, 4, 4\].*one for each of the 2 hierarchies"),
    ({"heads": 0}, "heads: got 0"),
    ({"heads": 4, "kv_heads": 3}, "kv_heads: got 3, allowed: divisors of heads = 4"),
    ({"depth": 10**6}, "depth: got 1000000, allowed: 1 to 10,000 layers"),
    ({"ff_mult": 1e30}, r"ff_mult: got 1e\+30, allowed: above 0, at most 1,000"),
    ({"dim": 2**31}, "dim: got 2147483648, allowed: at least 2, below 2"),
    ({"dim_head": 10**6}, "dim_head: got 1000000, allowed: an even number, 2 to 65,536"),
    ({"depth": (1, 2)}, r"depth: got \[1, 2\]"),
    ({"depth": 2, "attn_depth": 3}, "attn_depth: got 3, allowed: null, or 1 to 2"),
    ({"attn_depth": 0}, "attn_depth: got 0, allowed: null, or at least 1"),
    ({"depth": [[2, 0]]}, r"depth: got \[\[2, 0\]\], allowed: 1 to 10,000 layers, or a list of their indices"),
    ({"depth": [[]]}, r"depth: got \[\[\]\]"),
    ({"depth": [[0, 10**4]]}, r"depth: got \[\[0, 10000\]\]"),
    ({"depth": [[0, 2]], "attn_depth": 3}, "attn_depth: got 3, allowed: null, or 1 to 2"),
    ({"boundaries": "lines"}, "boundaries: got lines, allowed: stride or words"),
    (
        {"hierarchies": (1, 4), "boundaries": "words", "hierarchical_stride": (1, 2)},
        r"hierarchical_stride: got \[1, 2\], allowed: null, or the compression itself for levels with boundaries",
    ),
    ({"compress_from": "bytes"}, "compress_from: got bytes, allowed: embeddings or states"),
    (
        {"hierarchies": (2, 4), "hierarchical_stride": (1, 4), "compress_from": "states"},
        "compress_from: got states, allowed: embeddings, as there is no level 1",
    ),
    ({"merge_type": "mean"}, "merge_type: got mean, allowed: network or linear"),
    ({"merge_layers": [1]}, r"merge_layers: got \[1\], allowed: null or \[\], as there is a single level"),
    (
        {"hierarchies": (1, 4), "depth": [[0, 3], [1, 2]], "compress_from": "states", "merge_layers": [0, 2]},
        r"merge_layers: got \[0, 2\], allowed: null, or layers 1 to 3, the last of them not before layer 2",
    ),
    ({"hierarchies": (1, 4), "merge_layers": [1]}, "merge_layers: .* the last of them not before layer 3"),
    ({"dim_head": 7}, "dim_head: got 7, allowed: an even number"),
    ({"ff_mult": 0}, "ff_mult: got 0"),
    ({"compress_type": "magic"}, "compress_type: got magic, allowed: conv, mean, attention or last"),
    ({"compress_mult": -1}, "compress_mult: got -1"),
    ({"hierarchies": (1, 0)}, r"hierarchies: got \[1, 0\], allowed: one or more distinct whole numbers"),
    ({"hierarchies": (1, 1)}, r"hierarchies: got \[1, 1\]"),
    ({"hierarchies": ()}, r"hierarchies: got \[\]"),
    ({"hierarchies": (1, 4), "hierarchical_stride": (1, 8)}, r"hierarchical_stride: got \[1, 8\]"),
    ({"hierarchies": (1, 4), "hierarchical_stride": (1, 3)}, r"hierarchical_stride: got \[1, 3\]"),
    ({"hierarchies": 4}, "hierarchies: got 4, allowed: a predicting level with a stride of 1 byte"),
    ({"hierarchies": 4, "hierarchical_stride": 2}, "hierarchical_stride: got 2, allowed: a predicting level with a"),
    ({"embed_dim": 0}, "embed_dim: got 0, allowed: null, or at least 1"),
    ({"attention": "fast"}, "attention: got fast, allowed: auto, plain, sdpa"),
    (
        {"attention": "flex", "dim_head": 8},
        "attention: got flex, allowed: any other backend, as flex needs a dim_head of at least 16 and has 8",
    ),
    ({"qk_norm": 1}, "qk_norm: got 1, allowed: true or false"),
    ({"seq_len": 64, "window_sizes": 65}, "window_sizes: got 65, allowed: null, or 0 to .* 64 at 1x"),
    ({"window_sizes": -1}, "window_sizes: got -1"),
    ({"ngrams": (1, 2)}, r"ngrams: got \[1, 2\], allowed: a list of increasing whole numbers from 2"),
    ({"ngrams": (3, 2)}, r"ngrams: got \[3, 2\]"),
    ({"ngrams": 3}, "ngrams: got 3"),
    ({"matches": (4, 1)}, r"matches: got \[4, 1\], allowed: a list of increasing whole numbers from 2"),
    ({"ngram_buckets": 0}, "ngram_buckets: got 0"),
    ({"predict_hierarchy": 2}, "predict_hierarchy: got 2"),
    ({"recon_loss_weight": -0.1}, "recon_loss_weight: got -0.1"),
    ({"dropout": 1.0}, "dropout: got 1.0"),
    ({"ngram_dropout": -0.1}, "ngram_dropout: got -0.1, allowed: 0 to below 1"),
]


@pytest.mark.parametrize(("arguments", "message"), ILLEGAL, ids=[message.split(":")[0] for _, message in ILLEGAL])
def test_an_illegal_argument_is_reported_with_its_value(arguments, message):
    with pytest.raises(ValueError, match=message):
        HierarchicalTransformer(**arguments)


def test_all_mistakes_are_reported_at_once():
    with pytest.raises(ValueError, match=r"depth: got 0.*dropout: got 2.*heads: got 0"):
        ModelConfig(depth=0, heads=0, dropout=2)


def test_the_last_layers_of_a_level_attend():
    model = HierarchicalTransformer(dim=8, depth=(2, 3), attn_depth=(None, 1), seq_len=16, hierarchies=(1, 4))
    attends = [[block.attn is not None for block in level.blocks.values()] for level in model.levels]
    assert attends == [[True, True], [False, False, True]]


@given(model_configs())
def test_a_config_survives_json(arguments):
    config = ModelConfig(**arguments)
    assert ModelConfig(**json.loads(json.dumps(config.to_dict()))) == config
    assert len(config.levels) == len(arguments["hierarchies"])


def test_defaults_fit_any_number_of_levels():
    for hierarchies in (1, (1, 2), (1, 2, 4, 8)):
        levels = ModelConfig(hierarchies=hierarchies, seq_len=64).levels
        assert [level.stride for level in levels] == [level.compression for level in levels]
        assert [level.window for level in levels] == [64 // level.compression for level in levels]


ODD_VALUES = [None, [], [[1]], [{}], [1, [2]], [None], {}, {"a": 1}, "", "x", True, nan, inf, -1, 0, 10**30, 1.5, b"x"]


@pytest.mark.parametrize("name", [each.name for each in fields(ModelConfig)])
def test_a_value_of_any_kind_fits_or_is_reported(name):
    for value in ODD_VALUES:
        with suppress(UserError):
            ModelConfig(**{name: value})
