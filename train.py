"""Train a hierarchical byte model: `accelerate launch train.py --config configs/quickstart.yaml`.

Any setting can be given as a flag (`--model.depth=6 --train.max_steps=200`); `--help` lists them all. A run that was
stopped goes on with `--resume`. All that it writes lies in its run directory.
"""

import os
import sys
import time
from math import log
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, set_seed
from tqdm import tqdm

from data import batch, open_corpus, spread_windows
from data.text import to_text
from model import HierarchicalTransformer
from training.checkpoints import RunState, load_checkpoint, newest_whole_checkpoint, save_best_model, save_checkpoint
from training.config import Config, load_config, user_errors
from training.evaluation import bits_per_byte, window_nats
from training.files import write_text
from training.optimizer import build_optimizer, learning_rate, set_learning_rate
from training.run_dir import StopSignal, claim_run_dir
from training.summary import attention_kernels, count_parameters, flops_per_byte, human, model_card
from training.trackers import MetricsFile, start_wandb


def main(argv: list[str] | None = None) -> None:
    config = load_config(argv)
    train, seq_len = config.train, config.model.seq_len

    # -- the machine, the data, and a place for what comes out; nothing is written before all of it is known to fit
    with user_errors():
        accelerator = build_accelerator(config)
        with accelerator.main_process_first():
            corpus = open_corpus(config.data, seq_len)
        run_dir = claim_run_dir(config, accelerator)
    set_seed(train.seed)

    # -- the model and its optimizer, perhaps as a checkpoint left them
    model = HierarchicalTransformer(**config.model.to_dict())
    if accelerator.is_main_process:
        introduce(config, accelerator, model, corpus)
    model, optimizer = accelerator.prepare(model, build_optimizer(model, train))
    state, checkpoint = RunState(), newest_whole_checkpoint(run_dir) if config.resume else None
    if checkpoint is not None:
        state = load_checkpoint(accelerator, checkpoint)
        accelerator.print(f"resuming from {checkpoint}")
    if config.wandb.mode != "disabled":
        start_wandb(accelerator, config, state)
    metrics = MetricsFile(run_dir / "metrics.jsonl") if accelerator.is_main_process else None
    stop = StopSignal(accelerator)

    # -- one step: a global batch that depends on the step alone, cut into the pieces of this process
    pieces = train.gradient_accumulation_steps
    global_batch_size = train.batch_size * accelerator.num_processes * pieces

    def one_step() -> dict[str, torch.Tensor]:
        model.train()
        figures = {}
        for piece in range(pieces):
            first = (piece * accelerator.num_processes + accelerator.process_index) * train.batch_size
            rows = slice(first, first + train.batch_size)
            ids = batch(
                corpus["train"],
                seq_len,
                seed=train.seed,
                step=state.step,
                global_batch_size=global_batch_size,
                rows=rows,
            ).to(accelerator.device, non_blocking=True)
            with accelerator.accumulate(model):
                loss, losses = model(ids, return_loss=True)
                accelerator.backward(loss)
                if accelerator.sync_gradients and train.grad_clip:
                    figures["gradient_norm"] = accelerator.clip_grad_norm_(model.parameters(), train.grad_clip)
                optimizer.step()
                optimizer.zero_grad()
            parts = {"loss": loss.detach()} | {k: v for k, v in losses._asdict().items() if v is not None}
            for name, value in parts.items():
                figures[name] = figures.get(name, 0) + value / pieces
        return figures

    def validate() -> float:
        starts = spread_windows(len(corpus["valid"]), seq_len, train.validate_bytes)
        mine = starts[accelerator.process_index :: accelerator.num_processes]
        scores = window_nats(model, corpus["valid"], mine, mine + 1, seq_len, train.batch_size, accelerator.device)
        totals = torch.tensor([sum(nats.sum() for nats in scores), len(mine) * seq_len], dtype=torch.float32)
        return bits_per_byte(*accelerator.reduce(totals.to(accelerator.device), "sum").tolist())

    def sample() -> None:
        text = corpus["valid"][:4096].tobytes()
        text = text[text.find(b"\n") + 1 :][:64]  # from the beginning of a line, if there is one
        ids = torch.tensor([list(text)], device=accelerator.device)
        generator = torch.Generator().manual_seed(train.seed)
        with accelerator.autocast():
            new = accelerator.unwrap_model(model).generate(ids, train.sample_length, min_p=0.05, generator=generator)
        if accelerator.is_main_process:
            text = to_text(ids[0]) + "│" + to_text(new[0])  # the bar ends what was given
            write_text(run_dir / "samples" / f"step-{state.step:08d}.txt", text)
            tqdm.write(f"--- sample at step {state.step} ---\n{text}\n---")

    # -- the run
    started, since, pending = time.monotonic(), time.monotonic(), []
    progress = tqdm(
        total=train.max_steps,
        initial=state.step,
        unit="step",
        disable=not (accelerator.is_main_process and sys.stderr.isatty()),
    )
    stopping = False
    while state.step < train.max_steps and not stopping:
        rate = learning_rate(state.step, train)
        set_learning_rate(optimizer, rate)
        figures = one_step()
        state.step += 1
        pending.append({"step": state.step, "learning_rate": rate} | figures)
        at_end = state.step == train.max_steps
        progress.update()

        if state.step % train.validate_every == 0 or at_end:
            score = validate()
            pending[-1]["validation_bits_per_byte"] = score
            if score < state.best_bits_per_byte:
                state.best_bits_per_byte = score
                accelerator.unwrap_model(model).card = model_card(config, str(corpus.source), state.step, score)
                save_best_model(accelerator, model, run_dir)
            accelerator.print(f"step {state.step}: validation {score:.4f} bits per byte", flush=True)
        if (train.sample_every and state.step % train.sample_every == 0) or at_end:
            sample()

        stopping = stop.requested()
        at_checkpoint = state.step % train.checkpoint_every == 0 or at_end or stopping
        if state.step % train.log_every == 0 or at_checkpoint:
            speed = len(pending) * global_batch_size * seq_len / (time.monotonic() - since)
            lines = to_host(accelerator, pending, speed)
            if accelerator.is_main_process:
                for line in metrics.append(lines):
                    accelerator.log({k: v for k, v in line.items() if k != "step"}, step=line["step"])
                last = lines[-1]
                bits = last["cross_entropy"] / log(2)
                progress.set_postfix_str(f"loss {last['loss']:.3f}, {bits:.3f} bits/byte, {human(speed)}B/s")
            pending, since = [], time.monotonic()
        if at_checkpoint:
            save_checkpoint(accelerator, run_dir, state, train.keep_checkpoints)
    progress.close()

    # -- what came of it
    accelerator.end_training()
    if accelerator.is_main_process:
        conclude(state, run_dir, train.max_steps, time.monotonic() - started)
    stop.leave()


def build_accelerator(config: Config) -> Accelerator:
    """Device, precision and accumulation, on as many threads as the machine has cores for."""
    precision = config.train.mixed_precision
    if precision == "auto":
        precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        if precision == "no" and torch.cuda.is_available() and torch.cuda.is_bf16_supported():
            precision = "bf16"
    accelerator = Accelerator(
        mixed_precision=precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=config.train.gradient_accumulation_steps, sync_with_dataloader=False
        ),
        log_with=None if config.wandb.mode == "disabled" else "wandb",
    )
    if accelerator.device.type == "cpu":  # `accelerate launch` leaves a process one thread
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // processes))
    return accelerator


def to_host(accelerator: Accelerator, pending: list[dict], speed: float) -> list[dict]:
    """Steps' figures as plain numbers, averaged over processes, in one transfer."""
    names = [name for name, value in pending[0].items() if isinstance(value, torch.Tensor)]
    table = torch.stack([torch.stack([line[name].float() for name in names]) for line in pending])
    values = accelerator.reduce(table, "mean").tolist()
    lines = [line | dict(zip(names, row, strict=True)) for line, row in zip(pending, values, strict=True)]
    return [line | {"bytes_per_second": round(speed)} for line in lines]


def introduce(config: Config, accelerator: Accelerator, model: HierarchicalTransformer, corpus) -> None:
    """Say what will run."""
    parts = count_parameters(model)
    train, flops = config.train, flops_per_byte(config.model)
    sequences = train.batch_size * train.gradient_accumulation_steps * accelerator.num_processes
    sizes = ", ".join(f"{name} {size:,}" for name, size in corpus.sizes.items())
    print(
        f"device      {accelerator.device}, {accelerator.num_processes} process(es), {torch.get_num_threads()} threads"
    )
    print(f"precision   {'float32' if accelerator.mixed_precision == 'no' else accelerator.mixed_precision}")
    print(f"corpus      {corpus.name}: {sizes} bytes, from {corpus.source}")
    print(f"parameters  {sum(parts.values()):,}: " + ", ".join(f"{name} {size:,}" for name, size in parts.items()))
    print(f"attention   {attention_kernels(config.model, accelerator.device.type)}")
    print(f"compute     {human(3 * flops)}FLOPs to train on a byte ({human(flops)}forward)")
    print(
        f"run         {train.max_steps:,} steps of {sequences} × {config.model.seq_len} bytes, in {config.run_dir}",
        flush=True,
    )


def conclude(state: RunState, run_dir: Path, max_steps: int, seconds: float) -> None:
    """Say how the run ended, and what to type next."""
    print(f"{state.step:,} of {max_steps:,} steps, {seconds:.0f} s, best {state.best_bits_per_byte:.4f} bits per byte")
    if state.step < max_steps:
        print(f"go on with   accelerate launch train.py --run_dir {run_dir} --resume")
    if (run_dir / "model").is_dir():
        print(f'sample with  python generate.py {run_dir} --prompt "The "')
        print(f"score with   python evaluate.py {run_dir} --split test", flush=True)


if __name__ == "__main__":
    main()
