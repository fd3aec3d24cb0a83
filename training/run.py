"""A training run in progress."""

import time
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, set_seed
from torch import nn

from data import Corpus
from model import HierarchicalTransformer
from training.checkpoints import RunState, checkpoint_to_resume, load_checkpoint
from training.choices import Choices, write_choices
from training.config import Config
from training.init_from import Source, find_source, load_weights
from training.monitor import SpeedMeter, watch_activations
from training.optimizer import build_optimizer
from training.parallel import prepare, raised_by_all
from training.progress import Progress
from training.record import best_score, read_changes, set_metrics_aside, write_record
from training.resume import find_changes, own_settings
from training.speed import flops_per_byte
from training.step import StepResult, Trainer
from training.stop_signal import StopSignal
from training.summary import print_beginning, print_header
from training.trackers import Trackers
from utils.errors import Mistake, UserError
from utils.terminal import say


@dataclass
class Run:
    """What a run is made of, and how far it is."""

    config: Config
    corpus: Corpus
    trainer: Trainer
    state: RunState
    trackers: Trackers
    progress: Progress
    speed_meter: SpeedMeter
    stop_signal: StopSignal
    is_resumed: bool
    started: float
    """time.monotonic() at the start, moved back by the seconds of training before a resume"""
    stop_requested: bool = False
    """whether any process was told to stop, and may: see `count_step`"""
    checkpoint_due: bool = False
    """whether a checkpoint is to be written as soon as no step is skipped"""

    @property
    def accelerator(self) -> Accelerator:
        return self.trainer.accelerator

    @property
    def model(self) -> nn.Module:
        """The model as it is trained, perhaps wrapped."""
        return self.trainer.model

    @property
    def bytes_per_step(self) -> int:
        """Bytes predicted in a step, over all processes and accumulated batches."""
        return self.trainer.bytes_per_step

    @property
    def is_last_step(self) -> bool:
        return self.state.step >= self.config.train.max_steps

    @property
    def is_skipping(self) -> bool:
        """Whether the last step was skipped. The weights may be bad: no checkpoint is written, and none pruned."""
        return self.state.skipped_in_a_row > 0

    @property
    def is_finished(self) -> bool:
        return self.is_last_step or self.stop_requested

    def is_due(self, every: int) -> bool:
        """Whether the current step is a multiple of `every`, or the last one. With 0, only the last one is due."""
        return self.is_last_step or (every > 0 and self.state.step % every == 0)

    def elapsed(self) -> float:
        """Seconds of training, over all resumes."""
        return time.monotonic() - self.started

    def count_step(self, result: StepResult) -> None:
        """Move on by a step, and log what it measured.

        A stop waits until a step is not skipped, or too many are: so it saves weights that are good, and loses none.
        """
        state = self.state
        state.step += 1
        state.seconds = self.elapsed()
        state.skipped_in_a_row = 0 if result.finite else state.skipped_in_a_row + 1
        self.stop_requested = result.stop_requested and not self.is_skipping
        self.checkpoint_due |= result.stop_requested or result.save_requested
        if result.stop_requested and self.is_skipping:
            self.progress.say(f"step {state.step} was skipped: saving and exiting after the next one that is not")
        self.speed_meter.add(result)

        axes = {"bytes": state.step * self.bytes_per_step, "seconds": round(state.seconds, 3)}
        self.trackers.log(state.step, {**axes, **result.metrics}, result.offsets)


def start_run(config: Config, choices: Choices, accelerator: Accelerator, corpus: Corpus, trackers: Trackers) -> Run:
    """Build model and optimizer, load the newest whole checkpoint on --resume, and start the trackers."""
    # -- where to begin: at a checkpoint, at the weights of another model, or at random weights
    checkpoint = choose_checkpoint(config, accelerator)
    source = None
    if config.init_from and checkpoint is None:
        with raised_by_all():
            source = find_source(config.init_from)

    # -- what trains, and how fast
    flops = flops_per_byte(config.model)
    trainer = build_trainer(choices.settle(config), accelerator, corpus, source)
    speed_meter = SpeedMeter(accelerator, trainer.bytes_per_step, 3 * flops)
    if accelerator.is_main_process:
        print_header(config, choices, trainer, corpus, flops)

    # -- the state, as a checkpoint has it or from the start
    state = RunState(global_batch_size=trainer.global_batch_size)
    if checkpoint is not None:
        with raised_by_all(), own_settings(trainer.optimizer):
            state = load_checkpoint(accelerator, checkpoint, trainer.global_batch_size)
            check_max_steps(config, state, checkpoint)
    if config.resume and accelerator.is_main_process:
        beginning = f"no checkpoint in {config.run_dir} yet: beginning at step 0"
        say(f"resuming from {checkpoint}" if checkpoint else beginning)

    # -- what the run uses from here on, and what is not as it was before a resume
    changes = []
    with raised_by_all():
        if accelerator.is_main_process:
            if config.resume:
                changes = find_changes(config, corpus, state.step)
            replaced = set_metrics_aside(config.folder, state.step) if changes else 0
            print_beginning(config, source, changes, replaced)
            write_choices(config.folder, choices)
            write_record(config, corpus, source, changes, state.step)
    if config.resume:
        state.best_bits_per_byte = best_score(config.folder, state)

    # -- the trackers, and then the signals, because wandb may set a handler of Ctrl-C as well
    with raised_by_all():
        trackers.start(state)
    if source is not None:
        trackers.log(0, {"bytes": 0, "seconds": 0.0})  # axes for the validation before the first step
    if changes:
        trackers.log_changes(read_changes(config.folder))
    trainer.stop_signal = StopSignal()
    return Run(
        config=config,
        corpus=corpus,
        trainer=trainer,
        state=state,
        trackers=trackers,
        progress=Progress(config.train, state.step, trainer.bytes_per_step, shown=accelerator.is_main_process),
        speed_meter=speed_meter,
        stop_signal=trainer.stop_signal,
        is_resumed=checkpoint is not None,
        started=time.monotonic() - state.seconds,
    )


def choose_checkpoint(config: Config, accelerator: Accelerator) -> Path | None:
    """The checkpoint to resume from, which the main process chooses for all; None if the run begins."""
    checkpoint = None
    with raised_by_all():
        if config.resume and accelerator.is_main_process:
            checkpoint = checkpoint_to_resume(config.folder)
    (checkpoint,) = broadcast_object_list([checkpoint])
    return checkpoint


def build_trainer(config: Config, accelerator: Accelerator, corpus: Corpus, source: Source | None) -> Trainer:
    """What a training step needs, with the weights of a source if there is one, or else random ones."""
    # -- the same weights on all processes, then other dropout on each
    set_seed(config.train.seed)
    model = HierarchicalTransformer(**config.model.to_dict())
    if source is not None:
        load_weights(model, source)
    activations = watch_activations(model)
    set_seed(config.train.seed, device_specific=True)

    # -- ready to train
    optimizer = build_optimizer(model, config.train)
    model, optimizer = prepare(accelerator, model, optimizer, config.train)
    return Trainer(
        accelerator=accelerator,
        model=model,
        optimizer=optimizer,
        config=config.train,
        data=corpus["train"],
        seq_len=config.model.seq_len,
        activations=activations,
    )


def check_max_steps(config: Config, state: RunState, checkpoint: Path) -> None:
    """Raise a UserError if a checkpoint has more steps behind it than the run is to have."""
    if state.step > config.train.max_steps:
        allowed = f"at least {state.step}, the steps that {checkpoint} has behind it"
        raise UserError(Mistake("train.max_steps", config.train.max_steps, allowed))
