"""What a run chooses for its machine, and keeps: precision, the precision of Muon's products, threads.

What no setting decides is measured when the run begins, in about a second. Numbers differ a little from one choice to
another, so RUN_DIR/machine.json keeps them, and a resume makes the same ones.
"""

import json
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, is_bf16_available, parse_flag_from_env

from training.config import Config
from training.measuring import time_muon, time_precisions, time_threads
from training.parallel import prepare_process, raised_by_all
from training.threads import are_threads_given
from utils.errors import UserError
from utils.files import read_json, write_text
from utils.terminal import warn

# Another option replaces the usual one only if it saves this share of the time, and this many milliseconds. Less would
# be chance, and would not matter.
MARGIN = 0.1
LEAST_GAIN = 1.0


def in_words(option: str) -> str:
    """An option as people call it: Accelerate's precision `no` is float32."""
    return "float32" if option == "no" else option


@dataclass(frozen=True)
class Choice:
    """One of several ways to compute, and why."""

    option: str
    milliseconds: dict[str, float] = field(default_factory=dict)
    """what each option took, if they were measured"""

    def __post_init__(self):
        if not isinstance(self.option, str) or not isinstance(self.milliseconds, dict):
            raise TypeError("it is no choice")

    @property
    def reason(self) -> str:
        """The figures behind it, for people; empty if there are none."""
        figures = ", ".join(f"{ms:.3g} ms with {in_words(name)}" for name, ms in self.milliseconds.items())
        return f" (measured: {figures})" if figures else ""


@dataclass(frozen=True)
class Choices:
    """How a run computes."""

    precision: Choice
    """Accelerate's precision: no, bf16 or fp16"""
    muon: Choice
    """precision of Muon's products: no or bf16"""
    threads: Choice
    """threads of each process, on a CPU"""
    most_threads: int
    """threads that each process could have had"""
    device: str
    """what they were made on: cpu, mps, or the name of a GPU"""

    def settle(self, config: Config) -> Config:
        """A config with these choices in the place of "auto"."""
        train = replace(config.train, mixed_precision=self.precision.option, muon_precision=self.muon.option)
        return replace(config, train=train)


def make_choices(config: Config) -> Choices:
    """The choices of a run: those of its settings, those that it made before, or those that are measured now.

    The main process makes them for all. On a CPU this also sets the threads of PyTorch.

    Raises:
        UserError: if the choices that the run made before cannot be read.
    """
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))  # as an Accelerator finds it
    device = state.device
    assert device is not None
    prepare_process(device)
    choices = None
    with raised_by_all():
        if state.is_main_process:
            before = read_choices(config.folder) if config.resume else None
            choices = choose(config, device, before)
    (choices,) = broadcast_object_list([choices])
    assert choices is not None
    if device.type == "cpu":
        torch.set_num_threads(int(choices.threads.option))
    return choices


def choose(config: Config, device: torch.device, before: Choices | None) -> Choices:
    """What `make_choices` does, on one process, after the choices that the run made before."""
    name = name_of(device)
    if before is not None and before.device != name:
        warn(f"this run chose how to compute on {before.device}, so it chooses anew on {name}")
        before = None
    precision = choose_precision(config, device, before)
    muon = choose_muon(config, device, before)
    threads = choose_threads(config, device, precision.option, before)
    return Choices(precision, muon, threads, torch.get_num_threads(), name)


def name_of(device: torch.device) -> str:
    """The name of a GPU, or else the kind of a device: other GPUs have other precisions."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def choose_precision(config: Config, device: torch.device, before: Choices | None) -> Choice:
    """The setting, else what `accelerate launch` was told, else the faster one of float32 and bfloat16."""
    if config.train.mixed_precision != "auto":
        return Choice(config.train.mixed_precision)
    told = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if told != "no":  # what it says if it was told nothing
        return Choice(told)
    if before is not None:
        return before.precision
    if not has_bf16(device):
        return Choice("no")
    return fastest(time_precisions(config.model, config.train, device))


def has_bf16(device: torch.device) -> bool:
    """Whether products in bfloat16 may be faster on a device."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and is_bf16_available()


def choose_muon(config: Config, device: torch.device, before: Choices | None) -> Choice:
    """The setting, else bfloat16 on a GPU, and the faster one on a CPU."""
    if config.train.optimizer != "muon":
        return Choice("no")
    if config.train.muon_precision != "auto":
        return Choice(config.train.muon_precision)
    if before is not None:
        return before.muon
    if device.type != "cpu":
        return Choice("bf16")
    return fastest(time_muon(config.model))


def choose_threads(config: Config, device: torch.device, precision: str, before: Choices | None) -> Choice:
    """As many as the user gave, else all that there are for a process, or fewer if that is faster.

    A resume chooses again if there are more or fewer of them than before.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1 or are_threads_given():
        return Choice(str(threads))
    if before is not None and before.most_threads == threads:
        return before.threads
    return fastest(time_threads(config.model, config.train, precision))


def fastest(milliseconds: dict[str, float]) -> Choice:
    """The option that took the shortest time; the first one if none is clearly faster."""
    usual = next(iter(milliseconds))
    best = min(milliseconds, key=lambda option: milliseconds[option])
    gain = milliseconds[usual] - milliseconds[best]
    is_clear = gain > max(LEAST_GAIN, MARGIN * milliseconds[usual])
    return Choice(best if is_clear else usual, milliseconds)


def read_choices(run_dir: Path) -> Choices | None:
    """What a run chose before, from RUN_DIR/machine.json; None if there is no such file.

    Raises:
        UserError: if it is damaged.
    """
    path = run_dir / "machine.json"
    if not path.exists():
        return None
    try:
        kept = dict(read_json(path))
        most_threads = int(kept.pop("most_threads"))
        device = str(kept.pop("device"))
        choices = {name: Choice(**choice) for name, choice in kept.items()}
        return Choices(**choices, most_threads=most_threads, device=device)
    except (UserError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} cannot be read ({error}); delete the file to measure again") from error


def write_choices(run_dir: Path, choices: Choices) -> None:
    """Write RUN_DIR/machine.json. Raises an OSError if it cannot be written."""
    write_text(run_dir / "machine.json", json.dumps(asdict(choices), indent=2) + "\n")
