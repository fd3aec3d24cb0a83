"""Time training steps of several contenders in turns, and print their speeds side by side; or the parts of one step.

The contenders' step is forward, backward, gradient clipping and AdamW. A share of the peak is the FLOPs of a step, as
`benchmarks.flops` counts them, over the time it takes and over the speed of the fastest square matrix product.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch

from benchmarks import contenders
from benchmarks.contenders import Contender, count_parameters, random_ids, take_step, training_step
from benchmarks.flops import count_flops
from benchmarks.speed.machine import MatmulPeak
from benchmarks.speed.options import PRECISIONS, Options
from benchmarks.speed.timing import median, spread, time_in_turns
from benchmarks.tables import format_table
from training.config import Config
from training.optimizer import build_optimizer, by_shape, orthogonalise
from training.parallel import make_gradients_of_tables_sparse, wrap_blocks


@dataclass(frozen=True)
class Entry:
    """A contender, or None if its package is not installed, and the batch of its step."""

    contender: Contender | None
    batch: int
    """sequences in a step"""
    seq_len: int
    """bytes in a sequence"""
    compiled: bool = False
    """compile its blocks with torch.compile"""


def time_training_steps(entries: dict[str, Entry], options: Options) -> dict[str, dict]:
    """Time steps of all installed contenders in each precision, in turns with the matrix products of the peak.

    Returns the results by "NAME, PRECISION": precision, bytes_per_second, spread, flops_per_byte, share_of_peak and
    parameters.
    """
    # Prepare what takes turns: a matrix product for each precision, and a step for each contender and precision.
    calls: dict[tuple[str, str], Callable[[], object]] = {}
    peaks = {precision: MatmulPeak(PRECISIONS[precision], options.device) for precision in options.precisions}
    for precision, peak in peaks.items():
        calls["matrix product", precision] = peak.measure

    installed: dict[str, Contender] = {}
    flops_per_byte = {}
    for name, entry in entries.items():
        if entry.contender is None:
            continue
        contender = entry.contender
        installed[name] = contender
        flops_per_byte[name] = count_flops(contender, entry.seq_len)
        contender.to(options.device).train()
        if entry.compiled:
            wrap_blocks(contender, compiling=True)
        for precision in options.precisions:
            ids = random_ids(entry.batch, entry.seq_len, options.device)
            calls[name, precision] = training_step(contender, ids, precision == "bf16")

    seconds = time_in_turns(calls, options.rounds)

    # Turn seconds into speeds.
    results = {}
    for name, contender in installed.items():
        for precision in options.precisions:
            times = seconds[name, precision]
            bytes_per_step = entries[name].batch * entries[name].seq_len
            speed = bytes_per_step / median(times)
            results[f"{name}, {precision}"] = {
                "precision": precision,
                "bytes_per_second": speed,
                "spread": spread(times),
                "flops_per_byte": flops_per_byte[name],
                "share_of_peak": speed * flops_per_byte[name] / peaks[precision].best,
                "parameters": count_parameters(contender),
            }
    return results


def add_ratios(results: dict[str, dict], baseline: str) -> None:
    """Give each result of `time_training_steps` the `ratio` of its speed to the baseline's in the same precision.

    The ratio is None if the baseline is not installed.
    """
    for result in results.values():
        other = results.get(f"{baseline}, {result['precision']}")
        result["ratio"] = None if other is None else result["bytes_per_second"] / other["bytes_per_second"]


def time_optimizer(config: Config, options: Options) -> dict[str, dict[str, float]]:
    """Time a run's step, with its batch and optimizer, and in turns with it the optimizer alone.

    Returns the seconds of a `step`, of its `optimizer`, and of Muon's `orthogonalisation` in that, by the precision of
    all products, Muon's included. The orthogonalisation of other optimizers takes about none. The `floor` is the time
    that the model's FLOPs would take at the peak.
    """
    contender = contenders.ours(**config.model.to_dict())
    seq_len = config.model.seq_len
    flops = count_flops(contender, seq_len) * seq_len * config.train.batch_size
    contender.to(options.device).train()
    if options.device == "cpu":
        make_gradients_of_tables_sparse(contender)
    ids = random_ids(config.train.batch_size, seq_len, options.device)
    gradients = torch.autograd.grad(contender.loss(ids), list(contender.parameters()), allow_unused=True)

    def step_optimizer(optimizer: torch.optim.Optimizer) -> None:
        for parameter, gradient in zip(contender.parameters(), gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        optimizer.zero_grad()

    @torch.no_grad()
    def orthogonalise_all(optimizer: torch.optim.Optimizer, dtype: torch.dtype) -> None:
        for group in optimizer.param_groups:
            if "ns_steps" in group:  # Muon's
                for matrices in by_shape(group["params"]):
                    orthogonalise(matrices, dtype, group)

    peaks = {precision: MatmulPeak(PRECISIONS[precision], options.device) for precision in options.precisions}
    calls: dict[tuple[str, str], Callable[[], object]] = {}
    for precision in options.precisions:
        is_bf16 = precision == "bf16"
        calls[precision, "matrix product"] = peaks[precision].measure
        train = replace(config.train, muon_precision="bf16" if is_bf16 else "no")
        optimizer = build_optimizer(contender.model, train)
        calls[precision, "step"] = partial(take_step, contender, optimizer, ids, is_bf16)
        calls[precision, "optimizer"] = partial(step_optimizer, optimizer)
        calls[precision, "orthogonalisation"] = partial(orthogonalise_all, optimizer, PRECISIONS[precision])

    seconds = time_in_turns(calls, options.rounds)
    results: dict[str, dict[str, float]] = {}
    for precision, peak in peaks.items():
        results[precision] = {"floor": flops / peak.best}
        for part in ("step", "optimizer", "orthogonalisation"):
            results[precision][part] = median(seconds[precision, part])
    return results


def print_speeds(results: dict[str, dict], baseline: str | None = None) -> None:
    """Print the results of `time_training_steps` as a table, with their ratios if there is a baseline."""
    rows = []
    for name, result in results.items():
        row = {
            "model": name,
            "parameters": f"{result['parameters']:,}",
            "bytes/s": f"{result['bytes_per_second']:,.0f}",
            "spread": f"±{100 * result['spread']:.0f}%",
            "MFLOPs/byte": f"{result['flops_per_byte'] / 1e6:.2f}",
            "share of peak": f"{100 * result['share_of_peak']:.0f}%",
        }
        if baseline is not None:
            row[f"speed / {baseline}"] = format_ratio(result["ratio"])
        rows.append(row)
    print(format_table(rows))


def format_ratio(ratio: float | None) -> str:
    """A ratio as text, empty if there is none."""
    return "" if ratio is None else f"{ratio:.2f} ×"
