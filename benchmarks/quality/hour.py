"""What does a preset reach in an hour of this machine?

`python -m benchmarks.quality.hour --out runs/hour [--config configs/enwik8-base.yaml] [--minutes 60] [SETTINGS]`

1. Time some training steps. From then on a minute is a fixed number of steps.
2. Train for as many steps as fit into the time.
3. Score the whole test split: in windows that overlap by half, with the context carried on, and with a model that
   learns from each piece of the text after scoring it.
4. Code the first 100,000 bytes of it with the model, and decode them.
5. Generate: measure bytes/s of one row and of 16 rows, and write a sample.

All but the measurement of bytes/s are commands of their own, which are printed. SETTINGS are flags of train.py, such as
--data.path=FILE. The same command continues where it was stopped or killed.

Writes the run (OUT/run), and OUT/report.json and OUT/report.md with the machine, the versions, the curve and all
figures.
"""

import argparse
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch

from benchmarks.quality.cost_of_use import LENGTH, ROWS, Continuation, cut_rows, row_bytes
from benchmarks.quality.race_setup import make_folder
from benchmarks.speed.machine import REPO, measure_machine
from benchmarks.speed.timing import median, time_in_turns
from data import open_corpus
from model import HierarchicalTransformer
from model.generation.load import best_device, load_model
from model.generation.prepare import prepare_for_generation
from plot import read_metrics
from training.code_version import code_version
from training.command_line import user_errors
from training.optimizer import parameters_but_tables
from training.record import load_data_config
from utils.errors import Mistake, UserError
from utils.files import read_json, user_path, write_text
from utils.terminal import harmless, print_error, run_program, say

TIMED_STEPS = 60
SETTINGS_OF_TIMING = [
    f"--train.max_steps={TIMED_STEPS}",
    "--train.log_every=10",
    "--train.validate_bytes=1",
    "--train.sample_length=0",
    "--wandb.mode=disabled",
]
# Flags of train.py that this program decides.
OWN_SETTINGS = ("run_dir", "resume", "config", "train.max_steps")
CODED_BYTES = 100_000
ROUNDS = 5  # timed calls of generation
PROMPT = "The "


@dataclass(frozen=True)
class Plan:
    """What an hour is made of."""

    config: str
    minutes: float
    coded_bytes: int
    """bytes of the test split that are coded and decoded"""
    settings: list[str]
    """flags of train.py"""


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.hour",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--out", required=True, help="folder where everything is written")
    parser.add_argument("--config", default="configs/enwik8-base.yaml", help="what is trained")
    parser.add_argument("--minutes", type=float, default=60.0, help="training time")
    parser.add_argument("--coded-bytes", type=int, default=CODED_BYTES, help="bytes that are coded and decoded")
    args, settings = parser.parse_known_args(argv)

    with user_errors():
        folder = user_path(args.out)
        plan = Plan(args.config, args.minutes, args.coded_bytes, settings)
        check_plan(plan)
        begin(folder, plan)
    results = Results(folder / "results.json")
    run_dir = str(folder / "run")
    conditions = results.once("conditions", conditions_now)

    # Train for the time.
    speed = results.once("speed", lambda: time_steps(plan, folder / "timing"))
    steps = max(1, round(60 * plan.minutes * speed["bytes_per_second"] / speed["bytes_per_step"]))
    training = results.once("training", lambda: train(plan, steps, folder / "run"))

    # Score and code the test split.
    score = ["evaluate.py", run_dir, "--split", "test"]
    windows = results.once("windows", lambda: last_line(score))
    carried = results.once("carried", lambda: last_line([*score, "--carry", "--adapt"]))
    coded = results.once("coded", lambda: last_line([*score, "--verify", "--limit", str(plan.coded_bytes)]))

    # Generate.
    generate = ["generate.py", run_dir, "--prompt", PROMPT, "--top_p", "0.95", "--json"]
    sample = results.once("sample", lambda: last_line(generate))
    generation = results.once("generation", lambda: generation_speeds(folder / "run"))

    # Report.
    report = {
        **conditions,
        "plan": asdict(plan),
        "training": training,
        "windows": windows,
        "carried": carried,
        "coded": coded,
        "generation": generation,
        "sample": sample,
    }
    write_text(folder / "report.json", json.dumps(report, indent=1))
    write_text(folder / "report.md", "\n".join(markdown(report)) + "\n")
    say(*markdown(report), folder / "report.json", folder / "report.md")


# -- what was asked for, and what is already there


def conditions_now() -> dict[str, Any]:
    """When and with what an hour begins."""
    return {
        "date": date.today().isoformat(),
        "machine": measure_machine(best_device(), torch.get_num_threads()),
        "python": sys.version.split()[0],
        "code": code_version(),
    }


def check_plan(plan: Plan) -> None:
    """Raise a UserError that names each part of a plan that does not fit."""
    mistakes: list[Mistake | str] = []
    if not 0 < plan.minutes < float("inf"):
        mistakes.append(Mistake("minutes", plan.minutes, "above 0"))
    if plan.coded_bytes < 2:
        mistakes.append(Mistake("coded_bytes", plan.coded_bytes, "2 or above"))
    for flag in plan.settings:
        name = flag.partition("=")[0]
        if name.lstrip("-") in OWN_SETTINGS:
            mistakes.append(f"{name} cannot be passed on to train.py, as this program decides it")
        if not flag.startswith("--"):
            mistakes.append(f"{flag}: settings of train.py are written as one word, --NAME=VALUE")
    if mistakes:
        raise UserError(*mistakes)


def begin(folder: Path, plan: Plan) -> None:
    """Write a plan into a new folder, or see that the folder was begun with the same one.

    Raises:
        UserError: if it was begun with another, or cannot be made.
    """
    path = folder / "plan.json"
    if not path.exists():
        make_folder(folder)
        write_text(path, json.dumps(asdict(plan), indent=1))
    known = read_json(path)
    if known != asdict(plan):
        raise UserError(Mistake("out", f"{folder}, which was begun with {known}", "a new folder, or the same plan"))


class Results:
    """Figures by name in a JSON file, each of which is measured once."""

    def __init__(self, path: Path):
        self.path = path
        self.known: dict[str, Any] = read_json(path) if path.exists() else {}

    def once(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A figure that is known, or that is measured and then kept."""
        if name not in self.known:
            self.known[name] = measure()
            write_text(self.path, json.dumps(self.known, indent=1))
        return self.known[name]


# -- training


def time_steps(plan: Plan, run_dir: Path) -> dict[str, Any]:
    """Bytes per second of training steps, and bytes of a step. The first ten, in which code is compiled, do not count.

    Args:
        run_dir: where the timed run is; what an earlier try has left there is deleted.
    """
    shutil.rmtree(run_dir, ignore_errors=True)
    run([*train_command(plan, run_dir), *SETTINGS_OF_TIMING])
    lines = read_metrics(run_dir / "metrics.jsonl")
    speeds = [line["speed/bytes_per_second"] for line in lines if "speed/bytes_per_second" in line]
    return {"bytes_per_second": median(speeds[1:]), "bytes_per_step": lines[0]["bytes"]}


def train(plan: Plan, steps: int, run_dir: Path) -> dict[str, Any]:
    """Train for some steps, or go on with it, and return what the run has measured."""
    command = [*train_command(plan, run_dir), f"--train.max_steps={steps}"]
    if (run_dir / "config.yaml").exists():
        command.append("--resume")
    run(command)

    lines = read_metrics(run_dir / "metrics.jsonl")
    speeds = [line for line in lines if "speed/bytes_per_second" in line]
    validated = [line for line in lines if "validation/bits_per_byte" in line]
    model = load_model(run_dir, "cpu")
    return {
        "steps": steps,
        "bytes": lines[-1]["bytes"],
        "seconds": lines[-1]["seconds"],
        "bytes_per_second": median([line["speed/bytes_per_second"] for line in speeds]),
        "share_of_peak": median([line["speed/mfu"] for line in speeds]),
        "peak_memory_gib": max(line["speed/peak_memory_gib"] for line in speeds),
        "parameters": sum(p.numel() for p in model.parameters()),
        "parameters_outside_tables": sum(p.numel() for p in parameters_but_tables(model)),
        "curve": [
            {name: line[name] for name in ("step", "bytes", "seconds", "validation/bits_per_byte")}
            for line in validated
        ],
    }


def train_command(plan: Plan, run_dir: Path) -> list[str]:
    return ["train.py", "--config", plan.config, "--run_dir", str(run_dir), *plan.settings]


# -- generation


def generation_speeds(run_dir: Path) -> dict[str, float]:
    """Bytes per second that a run's model generates after a context of seq_len bytes of the test split, by rows."""
    model = load_model(run_dir, best_device())
    prepare_for_generation(model)
    text = open_corpus(load_data_config(run_dir))["test"]
    return {"1 row": continue_rows(model, text, 1), f"{ROWS} rows": continue_rows(model, text, ROWS)}


def continue_rows(model: HierarchicalTransformer, text: Any, rows: int) -> float:
    """Bytes per second of some rows at once, all together."""
    context = min(model.config.seq_len, len(text) - row_bytes(0, ROUNDS))
    prompts = cut_rows(text, rows, row_bytes(context, ROUNDS)).to(next(model.parameters()).device)
    seconds = time_in_turns({"generation": Continuation(model, prompts, context)}, ROUNDS)
    return rows * LENGTH / median(seconds["generation"])


# -- commands


def run(command: list[str], output: int | None = None) -> str:
    """Run one of the project's programs to its end, and return what it printed if `output` is a pipe.

    Ends this program when that one fails.
    """
    say(f"$ python {shlex.join(command)}")
    with subprocess.Popen([sys.executable, str(REPO / command[0]), *command[1:]], stdout=output, text=True) as process:
        try:
            printed, _ = process.communicate()
        except KeyboardInterrupt:  # Ctrl-C reached that program, too, and it may have something to save
            process.wait()
            raise
    if process.returncode:
        print_error(f"{command[0]} ended with exit code {process.returncode}; the same command continues")
        sys.exit(2 if process.returncode == 2 else 1)
    return printed or ""


def last_line(command: list[str]) -> dict[str, Any]:
    """The last line that a program prints, which is a JSON object."""
    return json.loads(run(command, output=subprocess.PIPE).splitlines()[-1])


# -- the report


def markdown(report: dict[str, Any]) -> list[str]:
    """The report as lines of Markdown."""
    plan = report["plan"]
    training = report["training"]
    machine = report["machine"]
    windows = report["windows"]
    carried = report["carried"]
    coded = report["coded"]
    in_tables = training["parameters"] - training["parameters_outside_tables"]
    peaks = ", ".join(f"{peak / 1e12:.3g} TFLOPs/s in {name}" for name, peak in machine["flops_per_second"].items())
    speeds = ", ".join(f"{name}: {speed:,.0f} bytes/s" for name, speed in report["generation"].items())
    coded_share = f"{coded['coded_bits_per_byte']:.4f} bits per byte, predicted {coded['predicted_bits_per_byte']:.4f}"
    figures = {
        "machine": f"{machine['name']}, {peaks}",
        "versions": f"Python {report['python']}, torch {machine['torch']}, commit {report['code']}",
        "parameters": f"{training['parameters_outside_tables']:,}, and {in_tables:,} in tables of n-grams",
        "training": f"{training['seconds'] / 60:.1f} minutes, {training['steps']:,} steps, {training['bytes']:,} bytes",
        "speed": f"{training['bytes_per_second']:,.0f} bytes/s, {training['share_of_peak']:.1%} of the peak",
        "memory": f"{training['peak_memory_gib']:.2f} GiB",
        "test, windows": f"**{windows['bits_per_byte']:.4f}** ({windows['seconds']:.0f} s)",
        "test, context carried on": f"**{carried['bits_per_byte']:.4f}** ({carried['seconds']:.0f} s)",
        "test, a model that learns": f"{carried['adapted_bits_per_byte']:.4f} ({carried['adapt_seconds']:.0f} s)",
        "coded and decoded": f"{coded['bytes']:,} bytes in {coded['coded_bytes']:,}, {coded_share}",
        "generation": speeds,
    }
    corpus = f"{windows['corpus']}, test split of {windows['bytes']:,} bytes"
    command = f"python -m benchmarks.quality.hour --config {plan['config']} --minutes {plan['minutes']:g}"
    return [
        f"# {Path(plan['config']).name} for {plan['minutes']:g} minutes",
        "",
        f"`{shlex.join([*shlex.split(command), *plan['settings']])}`, {report['date']}, one seed. {corpus}.",
        "Scores are bits per byte.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in figures.items()),
        "",
        "| minutes | bytes | validation |",
        "|---|---|---|",
        *(
            f"| {point['seconds'] / 60:.1f} | {point['bytes']:,} | {point['validation/bits_per_byte']:.4f} |"
            for point in training["curve"]
        ),
        "",
        *(f"    {line}" for line in harmless(report["sample"]["prompt"] + report["sample"]["text"]).split("\n")),
    ]


if __name__ == "__main__":
    run_program(main)
