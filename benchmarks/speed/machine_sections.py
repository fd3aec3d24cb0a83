"""Sections of the throughput benchmark about the machine and the program: peak, memory, startup and data."""

import sys
from pathlib import Path

from benchmarks import contenders
from benchmarks.contenders import preset
from benchmarks.speed import machine
from benchmarks.speed.memory import step_memory
from benchmarks.speed.model_sections import BUILT_IN, STEP
from benchmarks.speed.options import PRECISIONS, Options
from benchmarks.speed.timing import median
from benchmarks.speed.training_steps import Entry, format_ratio, time_training_steps
from benchmarks.tables import format_table
from data import DataConfig, open_corpus

LINEAR_SHAPES = [(2048, 256, 1024), (2048, 1024, 256), (4096, 384, 768), (1024, 576, 2304)]  # rows, dim in, dim out


def measure_peak(options: Options) -> dict:
    """Section peak: speed of matrix products, square and in the shapes of layers, and of memory."""
    results, rows = {}, []
    for precision in options.precisions:
        dtype = PRECISIONS[precision]
        speeds = {"square": machine.MatmulPeak(dtype, options.device).measure(2.0)}
        for shape in LINEAR_SHAPES:
            name = "×".join(str(size) for size in shape)
            speeds[name] = machine.linear_speed(dtype, options.device, *shape, options.rounds)
        results[precision] = speeds

        row = {"GFLOPs/s": precision}
        for name, speed in speeds.items():
            row[name] = f"{speed / 1e9:,.0f}"
        rows.append(row)

    bandwidth = machine.memory_bandwidth(options.device, options.rounds)
    results["memory"] = bandwidth
    print(format_table(rows))
    print(f"memory: read {bandwidth['read'] / 1e9:.1f} GB/s, copy {bandwidth['copy'] / 1e9:.1f} GB/s")
    return results


def measure_memory(options: Options) -> dict:
    """Section memory: peak memory of a step of the reference and of ours, beyond weights and optimizer state."""
    batch = 8
    configs = {"reference": STEP, "ours": STEP | BUILT_IN}
    results, rows = {}, []
    for precision in options.precisions:
        bytes_per_token = {}
        for builder, config in configs.items():
            peaks = []
            for _ in range(options.rounds):
                peaks.append(step_memory(builder, config, batch, precision == "bf16", options.threads))
            bytes_per_token[builder] = median(peaks) / (batch * STEP["seq_len"])

        installed = bytes_per_token["reference"] > 0
        ratio = bytes_per_token["ours"] / bytes_per_token["reference"] if installed else None
        results[precision] = {"bytes_per_token": bytes_per_token, "ratio": ratio}

        row = {"precision": precision}
        for builder, size in bytes_per_token.items():
            row[f"{builder}, KiB per byte of text"] = f"{size / 1024:.1f}"
        row["ours / reference"] = format_ratio(ratio)
        rows.append(row)
    print(format_table(rows))
    return results


def measure_startup(options: Options) -> dict:
    """Section startup: seconds until `train.py --help` ends and until a run's first step, and of the imports."""
    accelerate = Path(sys.executable).with_name("accelerate")
    launchers = {
        "python train.py": [sys.executable],
        "accelerate launch train.py": [str(accelerate), "launch"],
    }
    machine.first_step_seconds(launchers["python train.py"])  # caches the corpus

    seconds = {"train.py --help": [machine.help_seconds() for _ in range(options.rounds)]}
    for name, launcher in launchers.items():
        seconds[f"{name}, first step"] = [machine.first_step_seconds(launcher) for _ in range(options.rounds)]
    results: dict = {name: median(times) for name, times in seconds.items()}
    print(format_table([{"command": name, "seconds": f"{value:.2f}"} for name, value in results.items()]))

    programs = {"train.py --help": ["train.py", "--help"], "a run": ["-c", "import train"]}
    for name, arguments in programs.items():
        slowest = list(machine.import_seconds(arguments).items())[:8]
        print(f"imports of {name}: " + ", ".join(f"{package} {cost:.2f} s" for package, cost in slowest))
        results[f"imports of {name}"] = dict(slowest)
    return results


def measure_data(options: Options) -> dict:
    """Section data: how fast batches are made, and how fast quickstart's training uses them."""
    config = preset("quickstart")
    batch = 4
    corpus = open_corpus(DataConfig(name="python"))
    made = machine.batch_speed(corpus, config["seq_len"], batch, options.rounds)

    entry = Entry(contenders.ours(**config), batch, config["seq_len"])
    timed = time_training_steps({"quickstart": entry}, options)
    used = {name: result["bytes_per_second"] for name, result in timed.items()}
    ratios = {name: made / speed for name, speed in used.items()}

    rows = []
    for name, speed in used.items():
        rows.append(
            {
                "model": name,
                "bytes/s made": f"{made:,.0f}",
                "bytes/s used": f"{speed:,.0f}",
                "made / used": f"{ratios[name]:,.0f} ×",
            }
        )
    print(format_table(rows))
    return {"made": made, "eaten": used, "ratio": ratios}
