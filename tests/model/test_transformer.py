import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode

from model import Cache, HierarchicalTransformer
from tests.model.strategies import NARROW_BACKENDS, model_configs, other_ids, random_ids

LOSSES = {
    "reconstruction": "recon_loss_weight",
    "prophet": "prophet_loss_weight",
    "next_latent": "next_latent_loss_weight",
    "quantizer": "quantizer_loss_weight",
}


def build(config, seed=0):
    torch.manual_seed(seed)
    model = HierarchicalTransformer(**config).eval()
    for p in model.parameters():  # a weight of zero or one could hide a mistake
        torch.nn.init.normal_(p, std=0.3)
    return model


@settings(max_examples=200)
@given(config=model_configs(), n=st.integers(2, 40), data=st.data())
def test_no_logit_depends_on_a_later_byte(config, n, data):
    model = build(config)
    ids = random_ids(config, 2, n)
    t = data.draw(st.integers(1, n - 1), label="t")
    changed = ids.clone()
    changed[:, t] = other_ids(config, changed[:, t])
    with torch.no_grad():
        before, after = model(ids), model(changed)
    assert torch.equal(before[:, :t], after[:, :t])
    assert before.shape == (2, n, config["num_tokens"])


@given(config=model_configs(), n=st.integers(2, 40))
def test_a_byte_changes_its_own_prediction(config, n):
    model = build(config)
    ids = random_ids(config, 1, n)
    changed = ids.clone()
    changed[:, -1] = other_ids(config, changed[:, -1])
    with torch.no_grad():
        assert not torch.equal(model(ids)[:, -1], model(changed)[:, -1])


@given(config=model_configs(), n=st.integers(1, 60), data=st.data())
def test_a_prefix_gives_the_logits_of_the_whole_text(config, n, data):
    model = build(config)
    ids = random_ids(config, 1, n)
    shorter = data.draw(st.integers(1, n), label="shorter")
    with torch.no_grad():
        torch.testing.assert_close(model(ids[:, :shorter]), model(ids)[:, :shorter], atol=1e-4, rtol=1e-4)


@settings(max_examples=200)
@given(config=model_configs(), n=st.integers(2, 40))
def test_every_backend_trains_like_plain_attention(config, n):
    ids = random_ids(config, 2, n)
    plain = build(config | {"attention": "plain"}).double()
    plain_loss = plain(ids, return_loss=True)[0]
    plain_loss.backward()
    for backend in {"auto", *NARROW_BACKENDS} - {"plain"}:
        model = build(config | {"attention": backend}).double()
        loss = model(ids, return_loss=True)[0]
        torch.testing.assert_close(loss, plain_loss)
        loss.backward()
        for p, q in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, atol=1e-9, rtol=1e-6)


@given(config=model_configs(), n=st.integers(2, 20))
def test_the_loss_is_the_weighted_sum_of_its_parts(config, n):
    model = build(config)
    ids = random_ids(config, 2, n + 1)
    loss, losses = model(ids, return_loss=True)
    logits = model(ids[:, :-1])
    cross_entropy = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(losses.cross_entropy, cross_entropy.detach())
    inputs = ids[:, :-1]
    units = model.cut(inputs)
    outputs = model.run_levels(model.embed_bytes(inputs, None), units)
    byte_embeddings = model.embedding.byte_emb(inputs)
    expected = cross_entropy
    for name, option in LOSSES.items():
        weights = model.config.per_level(option)
        built = {i for i, c in enumerate(config["hierarchies"]) if weights[i] and (c > 1 or name == "next_latent")}
        assert {int(i) for i in model.losses[name]} == built if built else name not in model.losses
        parts = {
            i: model.losses[name][str(i)](outputs[i], units[i], inputs, ids[:, 1:], byte_embeddings) for i in built
        }
        expected = expected + sum(weights[i] * part for i, part in parts.items())
        by_level = {f"{name}/{config['hierarchies'][i]}x": part.detach() for i, part in parts.items()}
        torch.testing.assert_close({k: v for k, v in losses.by_level.items() if k.startswith(f"{name}/")}, by_level)
        if built:
            torch.testing.assert_close(getattr(losses, name), sum(parts.values()).detach())
        else:
            assert getattr(losses, name) is None
    torch.testing.assert_close(loss, expected)
    assert loss.requires_grad and not losses.cross_entropy.requires_grad


@given(config=model_configs())
def test_every_parameter_gets_a_gradient(config):
    model = build(config)
    model(random_ids(config, 2, 25), return_loss=True)[0].backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.filterwarnings("error")
@given(config=model_configs(), n=st.integers(4, 20))
def test_autocast_gives_the_same_losses_approximately(config, n):
    model = HierarchicalTransformer(**config | {"num_rollouts": 1}).eval()
    ids = random_ids(config, 2, n + 1)
    exact, _ = model(ids, return_loss=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss, losses = model(ids, return_loss=True)
    loss.backward()
    torch.testing.assert_close(loss, exact, atol=0.1, rtol=0.05)
    assert losses.cross_entropy.dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_ngram_dropout_drops_whole_embeddings_independently_and_only_in_training():
    config = {"dim": 8, "heads": 1, "dim_head": 4, "depth": 1, "seq_len": 8, "ngrams": (2, 3), "ngram_dropout": 0.25}
    model, seen = build(config), []
    torch.nn.init.zeros_(model.embedding.byte_emb.weight)
    for table, value in zip(model.embedding.ngram_emb.weight.chunk(2), (3.0, 30.0), strict=True):
        torch.nn.init.constant_(table, value)
    model.levels[0].compress.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    for training in (False, True):
        model.train(training)(torch.randint(0, 256, (16, 250)))
    whole, thinned = seen
    assert (whole == 33).all()
    values, counts = thinned.unique(return_counts=True)
    torch.testing.assert_close(values, torch.tensor([0.0, 4.0, 40.0, 44.0]))  # those that are kept are scaled up
    torch.testing.assert_close(counts / counts.sum(), torch.tensor([1, 3, 3, 9]) / 16, atol=0.03, rtol=0)
    assert (thinned == thinned[..., :1]).all()  # all channels of an n-gram, or none of them


def test_a_loss_of_weight_0_builds_nothing_and_costs_nothing():
    with_losses = dict.fromkeys(LOSSES.values(), 0.5)
    without = build({"hierarchies": (1, 4), "dim": 8, "seq_len": 16, **dict.fromkeys(LOSSES.values(), 0.0)})
    never = build({"hierarchies": (1, 4), "dim": 8, "seq_len": 16})
    assert without.state_dict().keys() == never.state_dict().keys()
    ids, flops = torch.randint(0, 256, (2, 17)), []
    for model in (never, without, build({"hierarchies": (1, 4), "dim": 8, "seq_len": 16} | with_losses)):
        with FlopCounterMode(display=False) as counter:
            model(ids, return_loss=True)[0].backward()
        flops.append(counter.get_total_flops())
    assert flops[0] == flops[1] < flops[2]


def test_a_card_is_saved_loaded_and_saved_again(tmp_path):
    model = build({"dim": 8, "heads": 1, "dim_head": 4, "depth": 1, "seq_len": 8})
    model.save_pretrained(tmp_path / "generic")
    assert "hierarchical-byte-transformer" in (tmp_path / "generic/README.md").read_text()
    assert "license" not in (tmp_path / "generic/README.md").read_text().partition("\n---\n")[0]
    model.card = "---\nlicense: mit\n---\n\nTrained on nothing at all: 8.0 bits per byte."
    model.save_pretrained(tmp_path / "one")
    HierarchicalTransformer.from_pretrained(tmp_path / "one").save_pretrained(tmp_path / "two")
    assert "8.0 bits per byte" in (tmp_path / "two/README.md").read_text()
    (tmp_path / "two/README.md").unlink()
    assert HierarchicalTransformer.from_pretrained(tmp_path / "two").card is None


def test_all_256_bytes_count():
    model = build({"dim": 8, "heads": 1, "dim_head": 4, "depth": 1, "seq_len": 8})
    for byte in (0, 1, 255):
        loss, _ = model(torch.full((1, 9), byte), return_loss=True)
        assert loss > 0 and loss.isfinite()


@settings(max_examples=10)
@given(config=model_configs())
def test_a_saved_model_comes_back(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model = build(config)
    model.save_pretrained(folder)
    again = HierarchicalTransformer.from_pretrained(folder)
    ids = random_ids(config, 1, 13)
    with torch.no_grad():
        assert torch.equal(model(ids), again(ids))
    assert again.config == model.config

    weights = load_file(folder / "model.safetensors")
    weights.pop("to_logits.weight")
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(RuntimeError, match="to_logits"):
        HierarchicalTransformer.from_pretrained(folder)


@settings(max_examples=10)
@given(config=model_configs(), steps=st.integers(0, 12))
def test_greedy_generation_takes_the_likeliest_each_time(config, steps):
    model = build(config).train()
    prompt = random_ids(config, 2, 5)
    new = model.generate(prompt, steps, temperature=0)
    assert model.training and new.shape == (2, steps)
    ids = prompt
    with torch.no_grad():
        for _ in range(steps):
            ids = torch.cat((ids, model.eval()(ids)[:, -1].argmax(-1, keepdim=True)), dim=1)
    assert torch.equal(new, ids[:, 5:])


def test_the_same_generator_gives_the_same_bytes():
    model = build({"dim": 8, "heads": 1, "dim_head": 4, "depth": 1, "seq_len": 8})
    draws = [
        model.generate(torch.zeros(3, 1, dtype=torch.long), 20, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    ]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0][0], draws[0][1])


@pytest.mark.parametrize(
    ("config", "merges"),
    [
        ({"depth": 3}, "012"),
        ({"depth": (1, 5)}, "34"),  # the fine level's one layer is the last
        ({"depth": (2, 5)}, "134"),  # its layers are 2 and 4
        ({"depth": (5, 1)}, "01234"),
        ({"depth": (1, 5), "hierarchy_merge_all": True}, "01234"),
        ({"depth": 3, "hierarchies": 1}, ""),
    ],
)
def test_merges_come_before_each_layer_of_a_target_and_at_the_end(config, merges):
    model = build({"dim": 8, "heads": 1, "dim_head": 4, "seq_len": 8, "hierarchies": (1, 4)} | config)
    assert [*model.merges] == list(merges)


TYPES = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32]


@pytest.mark.parametrize("dtype", TYPES)
@torch.no_grad()
def test_every_type_of_whole_numbers_gives_the_same(dtype):
    lookups = {"ngrams": (2, 3), "ngram_buckets": 64, "matches": (2,), "word_matches": (0,)}
    model = build({"dim": 8, "heads": 1, "dim_head": 4, "depth": 1, "seq_len": 8, **lookups}).eval()
    ids = torch.randint(0, 128, (2, 9))
    assert torch.equal(model(ids.to(dtype)), model(ids))
    assert torch.equal(model(ids.to(dtype), return_loss=True)[0], model(ids, return_loss=True)[0])
    cache, expected = Cache(), model(ids)
    pieces = [model(ids[:, :8].to(dtype), cache=cache), model(ids[:, 8:].to(dtype), cache=cache)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected)
    assert torch.equal(model.generate(ids.to(dtype), 3, temperature=0), model.generate(ids, 3, temperature=0))


@pytest.mark.parametrize(
    ("ids", "return_loss", "message"),
    [
        (torch.zeros(1, 1, dtype=torch.long), True, r"ids: got \[1, 1\] of torch.int64, allowed: .* of 2 or more"),
        (torch.zeros(1, 0, dtype=torch.long), True, r"ids: got \[1, 0\] of torch.int64, allowed: .* of 2 or more"),
        (torch.zeros(1, 0, dtype=torch.long), False, r"ids: got \[1, 0\] of torch.int64, allowed: .* of 1 or more"),
        (torch.zeros(0, 4, dtype=torch.long), False, r"ids: got \[0, 4\] of torch.int64, allowed: .* of one row"),
        (torch.zeros(4, dtype=torch.long), False, r"ids: got \[4\] of torch.int64, allowed: whole numbers \(b n\)"),
        (torch.zeros(1, 4, 2, dtype=torch.long), False, r"ids: got \[1, 4, 2\] of torch.int64"),
        (torch.zeros(1, 4), False, r"ids: got \[1, 4\] of torch.float32, allowed: whole numbers"),
        (torch.zeros(1, 4, dtype=torch.bool), False, r"ids: got \[1, 4\] of torch.bool, allowed: whole numbers"),
        (torch.tensor([[1, 256]]), False, "ids: got 1 to 256, allowed: 0 to 255"),
        (torch.tensor([[-1, 5]]), False, "ids: got -1 to 5, allowed: 0 to 255"),
        (torch.tensor([[5, -100]]), True, "ids: got -100 to 5, allowed: 0 to 255"),
    ],
    ids=lambda value: str(list(value.shape)) if isinstance(value, torch.Tensor) else None,
)
def test_ids_that_are_no_bytes_are_named(ids, return_loss, message):
    model = build({"dim": 8, "heads": 1, "dim_head": 4, "depth": 1, "seq_len": 8})
    with pytest.raises(ValueError, match=message):
        model(ids, return_loss=return_loss)
