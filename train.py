"""Train a hierarchical byte model: `accelerate launch train.py --config configs/quickstart.yaml`.

Every setting is also a flag (`--model.depth=6 --train.max_steps=200`); `--help` lists them all. `--resume` continues a
run that was stopped. Everything a run writes is in its run directory, apart from unpacked corpora.
"""

from contextlib import ExitStack
from math import isfinite

import torch

from data import open_corpus
from data.text import to_text
from evaluation.bits_per_byte import validation_bits_per_byte
from training.checkpoints import save_best_model, save_checkpoint
from training.choices import make_choices
from training.command_line import user_errors
from training.config import load_config
from training.monitor import UpdateRatio
from training.parallel import build_accelerator, is_compiling, main_process_first
from training.resume import check_corpus
from training.run import Run, start_run
from training.run_dir import Diverged, check_run_dir, open_run_dir, run_errors
from training.step import train_step
from training.stop_signal import ignore_save_requests
from training.summary import human, model_card, print_summary
from training.trackers import Trackers
from utils.compiler import check_compiler
from utils.errors import UserError
from utils.files import write_text
from utils.locks import release
from utils.terminal import go_on_without_output, run_program


def main(argv: list[str] | None = None) -> None:
    ignore_save_requests()
    config = load_config(argv)
    with ExitStack() as held, user_errors():
        # -- check the machine, the run directory, the dashboards and the data, before anything is written
        choices = make_choices(config)
        accelerator = build_accelerator(choices.settle(config))
        if is_compiling(config.train):
            check_compiler("train.compile", accelerator.device.type)
        with main_process_first(accelerator):
            if accelerator.is_main_process:
                check_run_dir(config)
            trackers = Trackers(config, accelerator.is_main_process)
            corpus = open_corpus(config.data, config.model.seq_len)
            lock = open_run_dir(config, accelerator.process_index)
            held.callback(release, lock)
            if accelerator.is_main_process:
                check_corpus(config, corpus)

        # -- train
        with run_errors(config.folder):
            run = start_run(config, choices, accelerator, corpus, trackers)
            train(run)

        # -- how it ended
        if accelerator.is_main_process:
            print_summary(config, run.state, run.bytes_per_step, trackers.locations)
    run.stop_signal.exit_if_received()


def train(run: Run) -> None:
    """Train to the last step, or until the run is told to stop."""
    config = run.config.train

    # -- the score of weights that were trained before, and the first checkpoint: something to resume from, and a full
    #    disk is noticed now
    if not run.is_resumed:
        if run.config.init_from:
            validate(run)
        write_checkpoint(run)
    if run.is_finished:
        run.progress.say(f"step {run.state.step} of {config.max_steps}: nothing left to train")

    # -- a step, then whatever is due after it; the last step has everything
    while not run.is_finished:
        take_step(run)
        if run.is_due(config.validate_every):
            validate(run)
        if run.is_due(config.log_every):
            run.trackers.flush()
        if run.is_due(config.sample_every):
            write_sample(run)
        run.checkpoint_due |= run.is_due(config.checkpoint_every)
        if run.checkpoint_due and not run.is_skipping:
            write_checkpoint(run)
        run.progress.advance()

    if run.checkpoint_due:
        skipped = run.state.skipped_in_a_row
        run.progress.say(f"no checkpoint of step {run.state.step}, because the last {skipped} step(s) were skipped")

    # -- no process may exit while another still communicates with it
    run.progress.close()
    run.state.seconds = run.elapsed()
    run.trackers.finish()
    run.accelerator.wait_for_everyone()
    run.accelerator.end_training()


def take_step(run: Run) -> None:
    """Take a training step, and log what it measured.

    Raises:
        Diverged: after too many skipped steps in a row.
    """
    config, state = run.config.train, run.state

    # -- the update ratio compares all weights with a copy, which is too slow for every step
    is_measured = (state.step + 1) % config.log_every == 0
    update_ratio = UpdateRatio(run.model) if is_measured else None

    # -- the step itself
    result = train_step(run.trainer, state.step)
    run.count_step(result)

    # -- what is measured every so many steps
    if update_ratio is not None:
        speed = run.speed_meter.read()
        run.trackers.log(state.step, {"train/update_ratio": update_ratio.read(), **speed})
        losses = f"loss {result.metrics['train/loss']:.3f}, {result.metrics['train/bits_per_byte']:.3f} bits/byte"
        run.progress.describe(f", {losses}, {human(speed['speed/bytes_per_second'])}B/s")

    # -- a few skipped steps are normal, many in a row are not
    if state.skipped_in_a_row >= config.max_skipped_steps:
        run.trackers.flush()
        raise Diverged(f"{state.skipped_in_a_row} steps in a row had a loss or gradient that is not finite")


def validate(run: Run) -> None:
    """Score the validation split, and keep the model in RUN_DIR/model if it is the best so far."""
    config, state = run.config, run.state

    # -- the score
    with run.progress.clock("validation"):
        state.validation = validation_bits_per_byte(
            run.accelerator,
            run.model,
            run.corpus["valid"],
            config.model.seq_len,
            config.train.batch_size,
            config.train.validate_bytes,
        )
    run.trackers.log(state.step, {"validation/bits_per_byte": state.validation})
    run.progress.say(f"step {state.step}: validation {state.validation:.4f} bits per byte")

    # -- the best model; a score that is not finite is never the best
    if not isfinite(state.validation) or state.validation >= state.best_bits_per_byte:
        return
    state.best_bits_per_byte = state.validation
    card = model_card(config, run.corpus.source, state.step, state.validation)
    with run.progress.clock("validation"):
        save_best_model(run.accelerator, run.model, card, config.folder, state)
        run.trackers.log_model(config.folder / "model", state.step, state.validation)


def write_sample(run: Run) -> None:
    """Write a text that continues the validation split to RUN_DIR/samples, and print it."""
    step, config = run.state.step, run.config
    try:
        with run.progress.clock("sample"):
            text = sample(run, config.train.sample_length)  # by every process, as a model may be sharded
    except UserError as error:
        run.progress.say(f"no sample at step {step}: {error}")
        return
    if run.accelerator.is_main_process:
        write_text(config.folder / "samples" / f"step-{step:08d}.txt", text)
    run.trackers.log_sample(step, text)
    run.progress.say(f"--- sample at step {step} ---", *text.split("\n"), "---")


def sample(run: Run, length: int) -> str:
    """A prompt from the validation split, a bar, and `length` bytes that continue it. The same on all processes."""
    beginning = run.corpus["valid"][:4096].tobytes()
    prompt = first_line(beginning)
    ids = torch.tensor([list(prompt)], device=run.accelerator.device)
    generator = torch.Generator().manual_seed(run.config.train.seed)
    model = run.accelerator.unwrap_model(run.model)
    with run.accelerator.autocast():
        new_ids = model.generate(ids, length, temperature=1.0, top_p=0.95, generator=generator)
    return to_text(ids[0]) + "│" + to_text(new_ids[0])


def first_line(text: bytes, length: int = 64) -> bytes:
    """`length` bytes from the start of the first whole line; of the text itself if no line starts in it."""
    start = text.find(b"\n") + 1
    return text[start:][:length] or text[:length]


def write_checkpoint(run: Run) -> None:
    """Save all that is needed to continue from here, after the metrics up to here."""
    run.trackers.flush()
    with run.progress.clock("checkpoint"):
        save_checkpoint(run.accelerator, run.config.folder, run.state, run.config.train.keep_checkpoints)
    run.checkpoint_due = False


if __name__ == "__main__":
    run_program(main, go_on_without_output)
