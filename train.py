"""Train a hierarchical byte model: `accelerate launch train.py --config configs/quickstart.yaml`.

Any setting can be given as a flag (`--model.depth=6 --train.max_steps=200`); `--help` lists them all. A run that was
stopped goes on with `--resume`. All that it writes lies in its run directory, but an unpacked corpus.
"""

import time
from functools import partial

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from torch import nn

from data import open_corpus
from data.text import to_text
from evaluation.bits_per_byte import validate
from model import HierarchicalTransformer
from training.checkpoints import RunState, load_checkpoint, newest_whole_checkpoint, save_best_model, save_checkpoint
from training.command_line import user_errors
from training.config import load_config
from training.monitor import SpeedMeter, UpdateRatio, watch_activations
from training.optimizer import build_optimizer
from training.parallel import build_accelerator, prepare
from training.progress import Progress
from training.run_dir import Diverged, check_run_dir, make_run_dir, run_errors
from training.speed import flops_per_byte
from training.step import Trainer, train_step
from training.stop_signal import StopSignal
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
        activations = watch_activations(model)
        model, optimizer = prepare(accelerator, model, build_optimizer(model, train), train)
        global_batch_size = train.batch_size * accelerator.num_processes * train.gradient_accumulation_steps
        speed_meter = SpeedMeter(accelerator, global_batch_size * seq_len, 3 * flops)
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
        trainer = Trainer(accelerator, model, optimizer, train, corpus["train"], seq_len, activations, stop)

        # -- the run
        pending = []
        begun, at_end, stopping = time.monotonic() - state.seconds, state.step >= train.max_steps, False
        while not (at_end or stopping):
            log_step = (state.step + 1) % train.log_every == 0
            update_ratio = UpdateRatio(model) if log_step else None
            result = train_step(trainer, state.step)
            speed_meter.add(result)

            state.step += 1
            state.seconds = time.monotonic() - begun
            state.skipped_in_a_row = state.skipped_in_a_row + 1 if not result.finite else 0
            stopping, at_end = result.stop_requested, state.step == train.max_steps
            at_checkpoint = state.step % train.checkpoint_every == 0 or at_end or stopping
            at_validation = state.step % train.validate_every == 0 or at_end
            at_sample = (train.sample_every and state.step % train.sample_every == 0) or at_end
            diverged = state.skipped_in_a_row >= train.max_skipped_steps
            line = {"step": state.step, "bytes": state.step * global_batch_size * seq_len}
            line |= {"seconds": round(state.seconds, 3)} | result.metrics
            if result.offsets:
                line["offsets"] = result.offsets
            pending.append(line)
            text = ""

            if update_ratio is not None:
                line["train/update_ratio"] = update_ratio.read()
                line |= speed_meter.read()
            if at_validation and not diverged:
                with progress.clock("validation"):
                    state.validation = line["validation/bits_per_byte"] = score = validate(
                        accelerator, model, corpus["valid"], seq_len, train.batch_size, train.validate_bytes
                    )
                progress.say(f"step {state.step}: validation {score:.4f} bits per byte")
            if log_step or at_validation or at_sample or at_checkpoint or diverged:
                if metrics is not None:
                    dashboard.log(metrics.append(pending))
                    speed = f", {human(line['speed/bytes_per_second'])}B/s" if log_step else ""
                    text = f", loss {line['train/loss']:.3f}, {line['train/bits_per_byte']:.3f} bits/byte{speed}"
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
    stop.exit_if_received()


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
