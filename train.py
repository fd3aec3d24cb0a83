"""Train a hierarchical byte model: `accelerate launch train.py --config configs/quickstart.yaml`.

Any setting can be given as a flag (`--model.depth=6 --train.max_steps=200`); `--help` lists them all. A run that was
stopped goes on with `--resume`. All that it writes lies in its run directory, but an unpacked corpus.
"""

import time
from functools import partial
from math import inf, isfinite, log

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from torch import nn

from data import batch, open_corpus, sequence_starts
from data.text import to_text
from evaluation.bits_per_byte import validate
from model import HierarchicalTransformer
from training.checkpoints import RunState, load_checkpoint, newest_whole_checkpoint, save_best_model, save_checkpoint
from training.command_line import user_errors
from training.config import Config, load_config
from training.monitor import Monitor, Updates
from training.optimizer import build_optimizer, learning_rate, set_learning_rate
from training.parallel import build_accelerator, prepare, whole
from training.progress import Progress
from training.run_dir import Diverged, StopSignal, check_run_dir, make_run_dir, run_errors
from training.speed import flops_per_byte
from training.summary import conclude, human, introduce, model_card
from training.trackers import Dashboard, MetricsFile, wandb_mode
from utils.files import write_text


def main(argv: list[str] | None = None) -> None:
    config = load_config(argv)
    train, seq_len = config.train, config.model.seq_len

    # -- the machine, the data, and a place for what comes out; nothing is written before all of it is known to fit
    with user_errors():
        accelerator, run_dir, dashboard_mode = build_accelerator(config), config.folder, "disabled"
        with accelerator.main_process_first():
            if accelerator.is_main_process:
                check_run_dir(config)
                dashboard_mode = wandb_mode(config)  # which may lack a key
            corpus = open_corpus(config.data, seq_len)
            if accelerator.is_main_process:
                make_run_dir(config)

    with run_errors(run_dir):
        # -- the model and its optimizer, perhaps as a checkpoint left them
        set_seed(train.seed)
        model = HierarchicalTransformer(**config.model.to_dict())
        flops = flops_per_byte(config.model)
        if accelerator.is_main_process:
            introduce(config, accelerator, model, corpus, flops)
        set_seed(train.seed, device_specific=True)  # no two processes drop out the same
        monitor = Monitor(accelerator, model, 3 * flops)
        model, optimizer = prepare(accelerator, model, build_optimizer(model, train), train)
        global_batch_size = train.batch_size * accelerator.num_processes * train.gradient_accumulation_steps
        state = RunState(global_batch_size=global_batch_size)
        checkpoint = newest_whole_checkpoint(run_dir) if config.resume else None
        if checkpoint is not None:
            with user_errors():
                state = load_checkpoint(accelerator, checkpoint, global_batch_size)
            accelerator.print(f"resuming from {checkpoint}")
        dashboard = Dashboard(accelerator, config, state, dashboard_mode)
        metrics = MetricsFile(run_dir / "metrics.jsonl") if accelerator.is_main_process else None
        progress = Progress(train, state.step, global_batch_size * seq_len, accelerator.is_main_process)
        watched = any(gather_object([not progress.bar.disable]))  # by somebody who sees the time that is left
        if checkpoint is None:  # so that there is something to go on from, and a full disk is met now
            with progress.clock("checkpoint"):
                save_checkpoint(accelerator, run_dir, state, train.keep_checkpoints)
        write = partial(sample, accelerator, model, corpus["valid"], train.seed)
        stop = StopSignal()

        # -- the run
        pending = []
        begun, at_end, stopping = time.monotonic() - state.seconds, state.step >= train.max_steps, False
        while not (at_end or stopping):
            log_step = (state.step + 1) % train.log_every == 0
            updates = Updates(model) if log_step else None
            line = {"step": state.step + 1, "learning_rate": learning_rate(state.step, train)}
            set_learning_rate(optimizer, line["learning_rate"])
            with monitor.clock("step"):
                line |= train_step(accelerator, model, optimizer, monitor, corpus["train"], config, state.step, stop)

            state.step += 1
            state.seconds = time.monotonic() - begun
            state.skipped_in_a_row = state.skipped_in_a_row + 1 if "offsets" in line else 0
            stopping, at_end = bool(line.pop("stop")), state.step == train.max_steps
            at_checkpoint = state.step % train.checkpoint_every == 0 or at_end or stopping
            at_validation = state.step % train.validate_every == 0 or at_end
            at_sample = (train.sample_every and state.step % train.sample_every == 0) or at_end
            diverged = state.skipped_in_a_row >= train.max_skipped_steps
            line |= {"seconds": round(state.seconds, 3), "bytes": state.step * global_batch_size * seq_len}
            pending.append(line)
            text = ""

            if updates is not None:
                line["update_ratio"] = updates.ratio()
                line |= monitor.figures(global_batch_size * seq_len)
            if at_validation and not diverged:
                with progress.clock("validation"):
                    state.validation = line["validation_bits_per_byte"] = score = validate(
                        accelerator, model, corpus["valid"], seq_len, train.batch_size, train.validate_bytes
                    )
                progress.say(f"step {state.step}: validation {score:.4f} bits per byte")
            if log_step or at_validation or at_sample or at_checkpoint or diverged:
                if metrics is not None:
                    dashboard.log(metrics.append(pending))
                    bits = line["cross_entropy"] / log(2)
                    speed = f", {human(line['bytes_per_second'])}B/s" if log_step else ""
                    text = f", loss {line['loss']:.3f}, {bits:.3f} bits/byte{speed}"
                pending = []
            if diverged:
                raise Diverged(f"{state.skipped_in_a_row} steps in a row had a loss or gradient that is not finite")

            if at_validation and state.validation < state.best_bits_per_byte:
                state.best_bits_per_byte = state.validation
                card = model_card(config, corpus.source, state.step, state.validation)
                with progress.clock("validation"):
                    save_best_model(accelerator, model, card, run_dir)
                    dashboard.log_best_model(run_dir / "model", state.step, state.validation)
            if at_sample:
                with progress.clock("sample"):
                    written = write(train.sample_length)
                if accelerator.is_main_process:
                    write_text(run_dir / "samples" / f"step-{state.step:08d}.txt", written)
                    dashboard.log_sample(state.step, written)
                progress.say(f"--- sample at step {state.step} ---\n{written}\n---")
            elif watched and "sample" not in progress.took:
                guess = partial(write, 16, temperature=0.0)  # which a model that goes astray can do as well
                progress.rehearse("sample", guess, share=16 / max(16, train.sample_length))
            if at_checkpoint:
                with progress.clock("checkpoint"):
                    save_checkpoint(accelerator, run_dir, state, train.keep_checkpoints)
            progress.advance(text)
        progress.close()
        state.seconds = time.monotonic() - begun
        accelerator.wait_for_everyone()  # none leaves while another one still talks to it
        accelerator.end_training()

    # -- what came of it
    if accelerator.is_main_process:
        conclude(config, state, global_batch_size * seq_len, dashboard.place)
    stop.leave()


def train_step(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    monitor: Monitor,
    data: np.ndarray,
    config: Config,
    step: int,
    stop: StopSignal,
) -> dict:
    """One step on a global batch that depends on `step` alone, cut into the pieces of this process.

    Returns the step's figures, averaged over the global batch; those of a step that is not finite, and so is skipped,
    hold the `offsets` of its sequences in the training split, for a look at what went wrong.
    """
    train, seq_len = config.train, config.model.seq_len
    pieces, processes = train.gradient_accumulation_steps, accelerator.num_processes
    which = {"seed": train.seed, "step": step, "global_batch_size": train.batch_size * processes * pieces}

    model.train()
    figures = {}
    for piece in range(pieces):
        with monitor.clock("data"):
            first = (piece * processes + accelerator.process_index) * train.batch_size
            ids = batch(data, seq_len, **which, rows=slice(first, first + train.batch_size))
            ids = ids.to(accelerator.device, non_blocking=True)
        with accelerator.accumulate(model):
            loss, losses = model(ids, return_loss=True)
            accelerator.backward(loss)
        parts = {name: part for name, part in losses._asdict().items() if isinstance(part, torch.Tensor)}
        parts |= {"loss": loss.detach()} | losses.by_level | monitor.scales
        for name, value in parts.items():
            figures[name] = figures.get(name, 0.0) + value / pieces
    norm = whole(accelerator.clip_grad_norm_(model.parameters(), train.grad_clip or inf))

    figures |= {"gradient_norm": norm, "stop": torch.tensor(float(stop.number != 0), device=norm.device)}
    table = torch.stack([value.float() for value in figures.values()])
    figures = dict(zip(figures, accelerator.reduce(table, "mean").tolist(), strict=True))
    healthy = isfinite(figures["loss"]) and isfinite(figures["gradient_norm"])
    if healthy or accelerator.scaler is not None:  # a scaler skips the step itself, and lowers its scale
        optimizer.step()
    optimizer.zero_grad()
    return figures if healthy else figures | {"offsets": sequence_starts(len(data), seq_len, **which).tolist()}


def sample(
    accelerator: Accelerator, model: nn.Module, data: np.ndarray, seed: int, length: int, temperature: float = 1.0
) -> str:
    """A text that goes on from the first line of a split, behind a bar. Every process calls this, and gets the same."""
    text = data[:4096].tobytes()
    text = text[text.find(b"\n") + 1 :][:64] or text[:64]  # from the beginning of a line, if there is one
    ids = torch.tensor([list(text)], device=accelerator.device)
    generator = torch.Generator().manual_seed(seed)
    with accelerator.autocast():
        new = accelerator.unwrap_model(model).generate(
            ids, length, temperature=temperature, min_p=0.05, generator=generator
        )
    return to_text(ids[0]) + "│" + to_text(new[0])


if __name__ == "__main__":
    main()
