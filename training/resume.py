"""What may change when a run is resumed, what must stay, and why."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from data import Corpus
from training.config import SECTIONS, Config
from training.reading import load_settings
from training.record import Change, changed_splits, corpus_changes, read_corpora
from utils.errors import Mistake, UserError, as_typed

# Why a setting must stay. RUN stands for the run directory.
SHAPE = "the weights have their shape from it"
LOSSES = "a loss of weight 0 has no weights in the model, and others have some"
TRAINED = "the weights were trained with it; --init_from RUN begins a new run from them, with other settings"
OPTIMIZER = "the checkpoint has the state of this one; --init_from RUN begins a new run from the weights alone"
SEED = "the batches to come follow from it; --init_from RUN begins a new run from the weights"
BEGUN = "the run has begun, and goes on from its own checkpoint"
FREE = None

# Every setting of `Config`, and why it must stay on --resume. A setting that is FREE may change.
ON_RESUME: dict[str, str | None] = {
    "run_dir": FREE,  # a run directory may be moved
    "init_from": BEGUN,
    # the model: only how it is computed, and what it leaves out in training
    "model.num_tokens": SHAPE,
    "model.embed_dim": SHAPE,
    "model.ngrams": SHAPE,
    "model.ngram_buckets": SHAPE,
    "model.ngram_dropout": FREE,
    "model.matches": SHAPE,
    "model.word_matches": SHAPE,
    "model.matches_per_context": SHAPE,
    "model.hierarchies": SHAPE,
    "model.hierarchical_stride": SHAPE,
    "model.boundaries": TRAINED,
    "model.dim": SHAPE,
    "model.depth": SHAPE,
    "model.compress_type": SHAPE,
    "model.compress_from": SHAPE,
    "model.compress_mult": SHAPE,
    "model.ff_mult": SHAPE,
    "model.dropout": FREE,
    "model.seq_len": TRAINED,
    "model.window_sizes": TRAINED,
    "model.attn_depth": SHAPE,
    "model.dim_head": SHAPE,
    "model.heads": SHAPE,
    "model.kv_heads": SHAPE,
    "model.qk_norm": SHAPE,
    "model.rotary_xpos": TRAINED,
    "model.attention": FREE,  # every backend computes the same
    "model.merge_layers": SHAPE,
    "model.merge_type": SHAPE,
    "model.hierarchy_merge_all": SHAPE,
    "model.predict_hierarchy": SHAPE,
    "model.predict_use_all_hierarchy": SHAPE,
    "model.recon_loss_weight": LOSSES,
    "model.prophet_loss_weight": LOSSES,
    "model.next_latent_loss_weight": LOSSES,
    "model.num_rollouts": TRAINED,
    "model.quantizer_loss_weight": LOSSES,
    # the corpus: its checksums decide, see `check_corpus`
    "data.name": FREE,
    "data.path": FREE,
    "data.head": FREE,
    "data.subset": FREE,
    "data.column": FREE,
    "data.max_bytes": FREE,
    "data.cache_dir": FREE,
    # training: all that each step reads again; batch_size × accumulation × processes must stay, which
    # `load_checkpoint` checks
    "train.max_steps": FREE,
    "train.batch_size": FREE,
    "train.gradient_accumulation_steps": FREE,
    "train.optimizer": OPTIMIZER,
    "train.learning_rate": FREE,
    "train.min_learning_rate": FREE,
    "train.schedule": FREE,
    "train.warmup_steps": FREE,
    "train.weight_decay": FREE,
    "train.betas": FREE,
    "train.grad_clip": FREE,
    "train.max_skipped_steps": FREE,
    "train.seed": SEED,
    "train.mixed_precision": FREE,
    "train.muon_precision": FREE,
    "train.tf32": FREE,
    "train.compile": FREE,
    "train.activation_checkpointing": FREE,
    "train.log_every": FREE,
    "train.validate_every": FREE,
    "train.validate_bytes": FREE,
    "train.sample_every": FREE,
    "train.sample_length": FREE,
    "train.checkpoint_every": FREE,
    "train.keep_checkpoints": FREE,
    "train.trackers": FREE,
    # dashboards
    "wandb.mode": FREE,
    "wandb.project": FREE,
    "wandb.name": FREE,
    "wandb.log_model": FREE,
    "trackio.project": FREE,
    "trackio.name": FREE,
    "trackio.space": FREE,
}


def flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings in sections as one dict, by their dotted names."""
    result = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            result |= {f"{name}.{inner}": inner_value for inner, inner_value in value.items()}
        else:
            result[name] = value
    return result


def changed_settings(now: dict, then: dict, step: int) -> list[Change]:
    """What is not as it was, between settings as `Config.to_dict` gives them. One that `then` lacks had its default."""
    before = flat(Config().to_dict()) | flat(then)
    return [Change(step, name, before[name], value) for name, value in flat(now).items() if before[name] != value]


def check_same_run(now: dict, then: dict, path: Path) -> None:
    """Compare two configs, the earlier one read from `path`.

    Raises:
        UserError: with each setting that makes this another run, and the reason.
    """
    mistakes = []
    for change in changed_settings(now, then, step=0):
        reason = ON_RESUME[change.setting]
        if reason is not None:
            reason = reason.replace("RUN", str(path.parent))
            mistakes.append(Mistake(change.setting, change.new, f"{as_typed(change.old)}, as in {path} ({reason})"))
    if mistakes:
        raise UserError(*mistakes)


def check_corpus(config: Config, corpus: Corpus) -> None:
    """Check that a resumed run goes on with the corpus that it had, or that the user has asked for another one.

    The checksums of the splits decide. For a run that has not kept them, the settings of the corpus do.

    Raises:
        UserError: with the splits or settings that differ.
    """
    if not config.resume:
        return
    run_dir = config.folder
    is_known = bool(read_corpora(run_dir))  # raises if corpus.json is damaged, whatever is allowed
    if config.allow_other_corpus:
        return

    # -- by the checksums
    splits = changed_splits(run_dir, corpus)
    if splits:
        raise UserError(
            f"data: the splits {', '.join(splits)} of {corpus.source} are not those that {run_dir} was trained on, "
            "as in its corpus.json; --allow_other_corpus goes on with the new ones"
        )
    if is_known:
        return

    # -- by the settings
    changes = changed_settings(config.to_dict(), read_settings(run_dir / "config.yaml"), step=0)
    others = [each for each in changes if each.setting.startswith("data.") and each.setting != "data.cache_dir"]
    allowed = f"as in {run_dir}, which has no corpus.json to compare with, or --allow_other_corpus"
    if others:
        raise UserError(*[Mistake(each.setting, each.new, f"{as_typed(each.old)}, {allowed}") for each in others])


def find_changes(config: Config, corpus: Corpus, step: int) -> list[Change]:
    """What is not as it was before a resume: settings, and splits of the corpus."""
    settings = changed_settings(config.to_dict(), read_settings(config.folder / "config.yaml"), step)
    return settings + corpus_changes(config.folder, corpus, step)


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of an earlier start, from its config.yaml.

    Raises:
        UserError: when the file cannot be read, or holds something else.
    """
    settings = load_settings(path, "run_dir")
    for section in SECTIONS:
        if not isinstance(settings.get(section, {}), dict):
            raise UserError(Mistake(f"{section} in {path}", settings[section], "settings by name"))
    return settings


@contextmanager
def own_settings(optimizer: torch.optim.Optimizer) -> Generator[None]:
    """Keep the settings of an optimizer, such as the weight decay, while a checkpoint is loaded within.

    A checkpoint holds the settings that it was written with as well as the state, and PyTorch loads both.
    """
    settings = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    yield
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)
