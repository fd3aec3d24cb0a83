"""What a resume may change, what it says about it, and that it really uses the new values."""

import json
import shutil

import pytest
import torch
import yaml

from model import HierarchicalTransformer, ModelConfig
from tests.runs import checkpoints, content, losses, metrics, weights
from training.checkpoints import read_state
from training.config import Config
from training.record import Change, read_changes, read_corpora
from training.resume import ON_RESUME, SHAPE, changed_settings, check_same_run, flat
from utils.errors import UserError

DAMAGED = ["", "null", "{}", "[1]", "[null]", "[{}]", '[{"sha256": []}]', "[", "[" * 100_000, "\0", "\xff"]

# Another value of each setting of the model that a resume allows, or refuses for another reason than a weight's shape.
OTHERS = {
    "ngram_dropout": 0.5,
    "dropout": 0.5,
    "seq_len": 48,
    "boundaries": "words",
    "window_sizes": (4, 2),
    "rotary_xpos": True,
    "attention": "plain",
    "recon_loss_weight": 0.2,
    "prophet_loss_weight": 0.2,
    "next_latent_loss_weight": 0.2,
    "num_rollouts": 2,
    "quantizer_loss_weight": 0.2,
}


@pytest.fixture
def copy(whole, workplace, request):
    """A finished run of this test's own, with its name."""
    name = f"copy-{request.node.name}"
    shutil.copytree(whole, workplace / name)
    return name


def replace_text(path, number: int, by: bytes) -> None:
    text = bytearray(path.read_bytes())
    text[number : number + len(by)] = by
    path.write_bytes(text)


def refused(train_here, capsys, *arguments) -> list[str]:
    with pytest.raises(SystemExit) as end:
        train_here(*arguments)
    assert end.value.code == 2
    return capsys.readouterr().err.splitlines()


class TestSettings:
    def test_the_table_has_every_setting(self):
        assert ON_RESUME.keys() == flat(Config().to_dict()).keys()

    def test_settings_that_are_said_to_shape_no_weights_shape_none(self):
        names = {
            name.removeprefix("model.") for name, why in ON_RESUME.items() if name[:6] == "model." and why != SHAPE
        }
        assert names == OTHERS.keys()
        losses = {name: 0.1 for name in OTHERS if name.endswith("loss_weight")}
        config = {"seq_len": 32, "hierarchies": (1, 4), "dim": 16, "dim_head": 8, "ngrams": (2,), **losses}

        def shapes(**changes):
            with torch.device("meta"):
                model = HierarchicalTransformer(**config | {"window_sizes": (8, 4)} | changes)
            return {name: weight.shape for name, weight in model.state_dict().items()}

        for name, value in OTHERS.items():
            assert getattr(ModelConfig(**config), name) != value
            assert shapes(**{name: value}) == shapes(), name

    def test_each_that_must_stay_is_refused_with_value_reason_and_advice(self, tmp_path):
        then = Config().to_dict()
        now = Config().to_dict()
        now["model"] |= {"seq_len": 64, "depth": 9, "dropout": 0.3}
        now["train"] |= {"seed": 3, "optimizer": "muon", "learning_rate": 1.0}
        now["init_from"] = "other"
        now["wandb"]["mode"] = "online"
        with pytest.raises(UserError) as error:
            check_same_run(now, then, tmp_path / "config.yaml")
        lines = {mistake.name: str(mistake) for mistake in error.value.mistakes}
        assert set(lines) == {"init_from", "model.seq_len", "model.depth", "train.seed", "train.optimizer"}
        for name in ("model.seq_len", "train.seed", "train.optimizer"):
            assert f"--init_from {tmp_path} begins a new run" in lines[name]
        assert lines["model.depth"].startswith(f"model.depth: got 9, allowed: 4, as in {tmp_path / 'config.yaml'} (")
        assert "init_from: got other, allowed: null" in lines["init_from"]

    def test_a_setting_that_an_older_run_did_not_have_had_its_default(self, tmp_path):
        then = Config().to_dict()
        del then["model"]["qk_norm"], then["init_from"], then["train"]["grad_clip"]
        assert changed_settings(Config().to_dict(), then, step=4) == []
        now = Config().to_dict()
        now["train"]["grad_clip"] = 0.5
        assert changed_settings(now, then, step=4) == [Change(4, "train.grad_clip", 1.0, 0.5)]
        now["init_from"] = "runs/other"
        with pytest.raises(UserError, match="init_from: got runs/other, allowed: null"):
            check_same_run(now, then, tmp_path / "config.yaml")

    def test_changes_are_said_and_kept_with_their_step(self, copy, workplace, train_here):
        changes = ("--train.max_steps=14", "--train.learning_rate=0.02", "--train.schedule=linear")
        said = train_here(copy, "--resume", *changes, "--model.dropout=0.25")
        assert [line[12:] for line in said if line.startswith("changed ")] == [
            f"run_dir: {workplace / 'whole'} -> {workplace / copy}",
            "model.dropout: 0.0 -> 0.25",
            "train.max_steps: 12 -> 14",
            "train.learning_rate: 0.01 -> 0.02",
            "train.schedule: cosine -> linear",
        ]
        assert len(losses(workplace / copy)) == 14
        train_here(copy, "--resume", "--train.max_steps=15")
        kept = [(change.step, change.setting, change.new) for change in read_changes(workplace / copy)]
        assert kept[1:] == [
            (12, "model.dropout", 0.25),
            (12, "train.max_steps", 14),
            (12, "train.learning_rate", 0.02),
            (12, "train.schedule", "linear"),
            (14, "train.max_steps", 15),
        ]
        settings = yaml.safe_load((workplace / copy / "config.yaml").read_text())
        assert settings["train"]["max_steps"] == 15 and settings["model"]["dropout"] == 0.25
        assert not any(line.startswith("changed ") for line in train_here(copy, "--resume"))

    def test_a_resume_that_is_refused_leaves_the_run_as_it_was(self, copy, workplace, train_here, capsys):
        before = content(workplace / copy)
        resume = (train_here, capsys, copy, "--resume", "--train.max_steps=20")
        assert "sequences per step" in refused(*resume, "--train.batch_size=2")[-1]
        assert "model.dim: got 32" in refused(*resume, "--model.dim=32")[-1]
        (line,) = refused(*resume[:-1], "--train.max_steps=11")
        assert line.startswith("error: train.max_steps: got 11, allowed: at least 12")
        assert content(workplace / copy) == before

    def test_what_neither_a_flag_nor_the_config_names_stays(self, copy, workplace, train_here):
        run = workplace / copy
        (workplace / "rate.yaml").write_text("train: {learning_rate: 0.005, max_steps: 13}")
        said = train_here(copy, "--resume", "--config", str(workplace / "rate.yaml"), "--train.learning_rate=0.004")
        changed = [line[12:] for line in said if line.startswith("changed ")][1:]
        assert changed == ["train.max_steps: 12 -> 13", "train.learning_rate: 0.01 -> 0.004"]
        assert len(losses(run)) == 13

    def test_steps_that_a_change_repeats_replace_metrics_but_not_a_better_model(self, copy, workplace, train_here):
        run = workplace / copy
        before, model = metrics(run), content(run / "model")
        shutil.rmtree(checkpoints(run)[-1])
        said = train_here(copy, "--resume", "--train.learning_rate=0.0001", "--train.min_learning_rate=0")
        assert "metrics     of 2 later step(s) from before the changes are in metrics-replaced.jsonl now" in said

        lines = (run / "metrics-replaced.jsonl").read_text().splitlines()
        assert list(map(json.loads, lines)) == before[10:]
        assert metrics(run)[:10] == before[:10] and len(losses(run)) == 12
        scores = [lines[-1]["validation/bits_per_byte"] for lines in (before, metrics(run))]
        assert scores[0] < scores[1]  # the smaller rate learns less

        assert content(run / "model") == model
        assert f"best        {scores[0]:.4f} bits per byte of the validation split, at step 12" in said


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_new_weight_decay_is_used(workplace, train_here, optimizer):
    """It shrinks the matrices by rate × decay in the next step, apart from what the gradient does."""
    name = f"decay-{optimizer}"
    run = workplace / name
    train_here(name, f"--train.optimizer={optimizer}", "--train.max_steps=5", "--train.weight_decay=0.1")
    before = weights(run)
    ends = {}
    for decay in ("0.1", "5.0"):
        shutil.copytree(run, workplace / f"{name}-{decay}")
        train_here(f"{name}-{decay}", "--resume", f"--train.weight_decay={decay}", "--train.max_steps=6")
        ends[decay] = weights(workplace / f"{name}-{decay}")
    rate = metrics(workplace / f"{name}-5.0")[-1]["train/learning_rate"]
    decayed = 0
    for name, old in before.items():
        difference = ends["5.0"][name] - ends["0.1"][name]
        if difference.any():
            torch.testing.assert_close(difference, -rate * 4.9 * old, atol=2e-7, rtol=1e-4)
            decayed += 1
    assert decayed >= 10


@pytest.mark.parametrize("betas", ["[0.5,0.95]", "[0.9,0.5]"])
def test_new_betas_are_used(copy, workplace, train_here, betas):
    run = workplace / copy
    rate = ("--train.learning_rate=0.01", "--train.max_steps=13")
    train_here(copy, "--resume", f"--train.betas={betas}", *rate)
    (group, _) = torch.load(checkpoints(run)[-1] / "optimizer.bin")["param_groups"]
    assert list(group["betas"]) == json.loads(betas)
    before = torch.load(checkpoints(run)[-2] / "optimizer.bin")["state"]
    after = torch.load(checkpoints(run)[-1] / "optimizer.bin")["state"]
    beta1, beta2 = json.loads(betas)
    for key, state in after.items():  # both averages are of the same gradient
        first = (state["exp_avg"] - beta1 * before[key]["exp_avg"]) / (1 - beta1)
        second = (state["exp_avg_sq"] - beta2 * before[key]["exp_avg_sq"]) / (1 - beta2)
        torch.testing.assert_close(first.square(), second, atol=1e-6, rtol=1e-3)


class TestCorpus:
    """The text of a run is replaced. Its splits have 21,347, 1,185 and 1,185 bytes."""

    @pytest.fixture
    def run(self, workplace, train_here, request):
        name = f"corpus-{request.node.name}"
        text = workplace / f"{name}.txt"
        shutil.copyfile(workplace / "text.txt", text)
        data = f"--data.path={text}"
        train_here(name, data, "--train.max_steps=4", "--train.validate_every=4")
        return name, text

    @pytest.mark.parametrize(
        ("places", "named"), [([0], "train"), ([22000], "valid"), ([23700], "test"), ([9, 23700], "train, test")]
    )
    def test_another_corpus_is_refused_by_the_names_of_its_splits(self, run, train_here, capsys, places, named):
        name, text = run
        for place in places:
            replace_text(text, place, b"X")
        (line,) = refused(train_here, capsys, name, "--resume", "--train.max_steps=6")
        assert line.startswith(f"error: data: the splits {named} of {text} are not those")
        assert "--allow_other_corpus" in line

    def test_a_run_goes_on_with_another_corpus_if_asked(self, run, workplace, train_here):
        name, text = run
        run_dir = workplace / name
        first = read_corpora(run_dir)
        assert [used.from_step for used in first] == [0] and first[0].sizes["train"] == 21347
        noise = torch.randint(256, (1185,), generator=torch.Generator().manual_seed(0)).tolist()
        replace_text(text, 21347, bytes(noise))  # a validation split that no model scores well on
        said = train_here(name, "--resume", "--allow_other_corpus", "--train.max_steps=8")

        corpora = read_corpora(run_dir)
        assert [used.from_step for used in corpora] == [0, 4] and corpora[0] == first[0]
        assert corpora[1].sha256["train"] == corpora[0].sha256["train"]
        assert corpora[1].sha256["valid"] != corpora[0].sha256["valid"]
        change = read_changes(run_dir)[-1]
        assert (change.step, change.setting) == (4, "corpus.valid")
        assert f"changed     {change}" in said
        assert len(losses(run_dir)) == 8

        # scores on another split do not compare: the best model is the best on the new one, though it scores worse
        scores = {line["step"]: line.get("validation/bits_per_byte") for line in metrics(run_dir)}
        assert scores[8] > scores[4]
        best = json.loads((run_dir / "model" / "training.json").read_text())
        assert best["step"] == 8
        assert any(line.startswith("best ") and line.endswith("at step 8") for line in said)

        # also if the run was killed between the resume and the next checkpoint
        shutil.rmtree(checkpoints(run_dir)[-1])
        shutil.rmtree(run_dir / "model")
        train_here(name, "--resume")
        assert json.loads((run_dir / "model" / "training.json").read_text())["step"] == 8

        train_here(name, "--resume", "--train.max_steps=9")  # now it is known
        assert len(read_corpora(run_dir)) == 2

    def test_the_same_bytes_elsewhere_are_the_same_corpus(self, run, workplace, train_here):
        name, text = run
        text.rename(text.with_suffix(".moved"))
        moved = text.with_suffix(".moved")
        said = train_here(name, "--resume", f"--data.path={moved}", "--train.max_steps=5")
        assert f"changed     data.path: {text} -> {moved}" in said
        assert len(losses(workplace / name)) == 5 and len(read_corpora(workplace / name)) == 1

    def test_a_run_that_has_not_kept_its_corpus_goes_on_and_says_so(self, run, workplace, train_here, capsys):
        name, text = run
        (workplace / name / "corpus.json").unlink()
        other = f"--data.path={workplace / 'text.txt'}"
        (line,) = refused(train_here, capsys, name, "--resume", other)
        assert line.startswith(f"error: data.path: got {workplace / 'text.txt'}, allowed: {text}, as in")
        said = train_here(name, "--resume", "--train.max_steps=5")
        assert any("not known" in line for line in said)
        assert [used.from_step for used in read_corpora(workplace / name)] == [4]

    @pytest.mark.parametrize(
        "content", [*DAMAGED, '[{"from_step": 0, "name": "", "source": "", "sizes": {}, "sha256": []}]']
    )
    def test_a_damaged_record_is_known_as_such(self, tmp_path, content):
        (tmp_path / "corpus.json").write_bytes(content.encode("latin-1"))
        with pytest.raises(UserError, match=r"corpus\.json cannot be read"):
            read_corpora(tmp_path)

    def test_a_run_with_a_damaged_record_ends_in_one_line(self, run, workplace, train_here, capsys):
        name, _ = run
        (workplace / name / "corpus.json").write_text("null")
        for flags in ((), ("--allow_other_corpus",)):
            (line,) = refused(train_here, capsys, name, "--resume", *flags)
            assert "corpus.json cannot be read" in line
        (workplace / name / "corpus.json").unlink()
        (workplace / name / "changes.json").write_text("null")
        (line,) = refused(train_here, capsys, name, "--resume", "--train.max_steps=9")
        assert "changes.json cannot be read" in line

    def test_the_flag_alone_is_refused(self, train_here, capsys):
        assert refused(train_here, capsys, "alone", "--allow_other_corpus") == [
            "error: --allow_other_corpus needs --resume"
        ]


def test_a_state_of_before_is_kept_for_all_that_may_change(copy, workplace, train_here):
    """Nothing but the settings is taken anew: the state goes on from the checkpoint."""
    run = workplace / copy
    before = torch.load(checkpoints(run)[-1] / "optimizer.bin")["state"]
    train_here(copy, "--resume", "--train.max_steps=13", "--train.weight_decay=0.3")
    after = torch.load(checkpoints(run)[-1] / "optimizer.bin")["state"]
    assert all(after[key]["step"] == before[key]["step"] + 1 for key in before)
    assert read_state(checkpoints(run)[-1]).step == 13
