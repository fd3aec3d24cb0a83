"""A training run in progress."""

import time
from dataclasses import dataclass

from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

from data import Corpus
from model import HierarchicalTransformer
from training.checkpoints import RunState, load_checkpoint, newest_whole_checkpoint
from training.command_line import user_errors
from training.config import Config
from training.monitor import SpeedMeter, watch_activations
from training.optimizer import build_optimizer
from training.parallel import prepare
from training.progress import Progress
from training.speed import flops_per_byte
from training.step import StepResult, Trainer
from training.stop_signal import StopSignal
from training.summary import print_header
from training.trackers import Trackers
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
    """whether any process was told to stop"""

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
        return self.trainer.global_batch_size * self.trainer.seq_len

    @property
    def is_last_step(self) -> bool:
        return self.state.step >= self.config.train.max_steps

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
        """Move on by a step, and log what it measured."""
        state = self.state
        state.step += 1
        state.seconds = self.elapsed()
        state.skipped_in_a_row = 0 if result.finite else state.skipped_in_a_row + 1
        self.stop_requested = result.stop_requested
        self.speed_meter.add(result)

        axes = {"bytes": state.step * self.bytes_per_step, "seconds": round(state.seconds, 3)}
        self.trackers.log(state.step, {**axes, **result.metrics}, result.offsets)


def start_run(config: Config, accelerator: Accelerator, corpus: Corpus, trackers: Trackers) -> Run:
    """Build model and optimizer, load the newest whole checkpoint on --resume, and start the trackers."""
    # -- the model, with the same weights on all processes
    set_seed(config.train.seed)
    model = HierarchicalTransformer(**config.model.to_dict())
    flops = flops_per_byte(config.model)
    activations = watch_activations(model)
    set_seed(config.train.seed, device_specific=True)  # dropout differs between processes

    # -- what a training step needs
    optimizer = build_optimizer(model, config.train)
    model, optimizer = prepare(accelerator, model, optimizer, config.train)
    trainer = Trainer(
        accelerator=accelerator,
        model=model,
        optimizer=optimizer,
        config=config.train,
        data=corpus["train"],
        seq_len=config.model.seq_len,
        activations=activations,
    )
    bytes_per_step = trainer.global_batch_size * trainer.seq_len
    speed_meter = SpeedMeter(accelerator, bytes_per_step, 3 * flops)
    if accelerator.is_main_process:
        print_header(config, trainer, corpus, flops)

    # -- the state, as a checkpoint has it or from the start
    state = RunState(global_batch_size=trainer.global_batch_size)
    checkpoint = newest_whole_checkpoint(config.folder) if config.resume else None
    if checkpoint is not None:
        with user_errors():
            state = load_checkpoint(accelerator, checkpoint, trainer.global_batch_size)
        if accelerator.is_main_process:
            say(f"resuming from {checkpoint}")

    # -- the trackers, and then Ctrl-C, for which wandb may set a handler as well
    trackers.start(state)
    trainer.stop_signal = stop_signal = StopSignal()
    return Run(
        config=config,
        corpus=corpus,
        trainer=trainer,
        state=state,
        trackers=trackers,
        progress=Progress(config.train, state.step, bytes_per_step, shown=accelerator.is_main_process),
        speed_meter=speed_meter,
        stop_signal=stop_signal,
        is_resumed=checkpoint is not None,
        started=time.monotonic() - state.seconds,
    )
