"""Steps of generation as compiled code for a CPU, which is kept on the disk.

A step is compiled by AOTInductor, PyTorch's compiler ahead of time:
https://docs.pytorch.org/docs/stable/torch.compiler_aot_inductor.html

The compiled code is a library that runs without Python and without the compiler. Weights are inputs, like the state, so
models of one config share a library, and a later process only loads it.
"""

import hashlib
import json
import os
import platform
import shutil
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from model.generation.cache import Cache, map_tensors
from model.generation.operations import REPLACED
from model.generation.static import static_step
from model.transformer import HierarchicalTransformer
from utils.compiler import recursion_limit
from utils.errors import UserError
from utils.files import cache_folder, read_json, replace, sha256
from utils.terminal import warn
from utils.threads import use_threads

COMPILER = {
    # Compute once what is read twice. By default it may be computed for each reader, as a query for each of its keys.
    "realize_reads_threshold": 2,
    "realize_opcount_threshold": 1,
    # With buffers reused in place, torch 2.13 gave wrong logits (words in tests/model/generation/test_replay.py).
    "inplace_buffers": False,
    # One allocation for all intermediate results. There are dozens, and each would take as long as its computation.
    "memory_planning": True,
    # Believe what PyTorch knows about this CPU's vectors. By default it compiles six programs to try them, for 6 s.
    "cpp.vec_isa_ok": True,
}

# With so many weights, and products of them with all rows, one thread is still faster than several, which wait for each
# other (benchmarks/LOG.md).
FEW_WEIGHTS = 1 << 21
FEW_PRODUCTS = 1 << 23

# The compiler plans memory by a function that calls itself several times for each intermediate result.
MANY_CALLS = 20_000

# The files of a compiled step: the library; and its checksum, the indices of the inputs that it takes, and how many
# threads it computes with.
LIBRARY = "step.so"
ABOUT = "step.json"

UNUSED = 30 * 24 * 3600  # seconds after which a step that nobody loads is deleted


class StepModule(nn.Module):
    """A step of generation, `static_step`, as a function of all tensors of a cache: ids (b 1), … -> logits (b 1 v).

    Args:
        forward: the model's own forward pass.
        cache: one that is ready for recorded steps.
    """

    def __init__(self, model: HierarchicalTransformer, forward: Callable, cache: Cache):
        super().__init__()
        self.model = model
        self.step = forward
        self.cache = cache

    def forward(self, ids: Tensor, *state: Tensor) -> tuple[Tensor]:
        tensors = iter(state)
        cache = map_tensors(self.cache, lambda t: next(tensors))
        return (static_step(self.step, ids, cache),)

    def weights(self) -> dict[str, Tensor]:
        """The model's parameters and buffers, which the compiled step takes as inputs, too."""
        return {name: t.detach() for name, t in (*self.named_parameters(), *self.named_buffers())}

    def threads(self, rows: int) -> int:
        """The number of threads that is fastest: one for a small step."""
        weights = sum(module.weight.numel() for module in self.model.modules() if isinstance(module, nn.Linear))
        is_small = weights <= FEW_WEIGHTS and rows * weights <= FEW_PRODUCTS
        return 1 if is_small else torch.get_num_threads()


class CompiledStep:
    """A library, and which of a step's inputs it takes: those that the step does not read would only cost time.

    Args:
        folder: one that `compile_step` has filled.

    Raises:
        UserError: if it is damaged.
    """

    def __init__(self, folder: Path):
        path = folder / LIBRARY
        about = read_json(folder / ABOUT)
        if not path.exists() or sha256(path) != about["sha256"]:  # part of a library would crash the process
            raise UserError(f"{path} is damaged")
        self.read: list[int] = about["read"]
        self.threads: int = about["threads"]
        self.library = torch._C._aoti.AOTIModelContainerRunnerCpu(str(path), 1)

    def bind(self, inputs: list[Tensor]) -> Callable[[Tensor], Tensor]:
        """The step as a function of ids (b 1) alone, for the same other inputs each time."""
        constant = [inputs[i] for i in self.read if i > 0]

        def run(ids: Tensor) -> Tensor:
            before = torch.get_num_threads()
            torch.set_num_threads(self.threads)  # `use_threads` takes as long as a small product
            try:
                return self.library.run([ids, *constant])[0]
            finally:
                torch.set_num_threads(before)

        return run


def load_or_compile(step: StepModule, inputs: list[Tensor], phase: tuple) -> CompiledStep:
    """A compiled step, from the cache on the disk if it is there.

    Args:
        inputs: ids, the state, and the weights.
        phase: what distinguishes this step from others of the same shapes.
    """
    threads = step.threads(rows=len(inputs[0]))
    folder = cache_folder("compiled-steps") / key_of(step, inputs, phase, threads)
    if folder.exists():
        try:
            compiled = CompiledStep(folder)
            note_use(folder)
            return compiled
        except UserError as error:
            warn(f"{error}, so this step is compiled again")
            shutil.rmtree(folder, ignore_errors=True)
    with TemporaryDirectory() as temporary:
        with use_threads(threads):
            compile_step(step, inputs, Path(temporary))
        try:
            keep(Path(temporary), folder)
        except OSError as error:
            warn(f"the compiled step is not kept for the next time ({error})")
        return CompiledStep(Path(temporary))  # what is loaded stays in memory when its file is deleted


def compile_step(step: StepModule, inputs: list[Tensor], folder: Path) -> None:
    """Trace a step as a function of all tensors that it reads, compile it, and write what `CompiledStep` loads."""
    from torch.fx.experimental.proxy_tensor import make_fx  # imports of the compiler take a while

    names = list(step.weights())

    def function(*inputs: Tensor) -> tuple[Tensor]:
        count = len(inputs) - len(names)
        weights = dict(zip(names, inputs[count:], strict=True))
        return torch.func.functional_call(step, weights, inputs[:count])

    with torch.inference_mode(False), torch.no_grad(), recursion_limit(MANY_CALLS), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch warns that it calls old functions of its own
        like = [torch.empty_like(t) if t.is_inference() else t for t in inputs]  # those cannot be traced
        traced = make_fx(function, REPLACED, tracing_mode="fake", _allow_non_fake_inputs=True)(*like)

        placeholders = traced.graph.find_nodes(op="placeholder")
        read = [i for i, node in enumerate(placeholders) if node.users or i == 0]
        for node in placeholders[1:]:
            if not node.users:
                traced.graph.erase_node(node)
        traced.recompile()

        options = COMPILER | {"aot_inductor.output_path": str(folder / LIBRARY)}
        torch._inductor.aot_compile(traced, tuple(like[i] for i in read), options=options)
    about = {"sha256": sha256(folder / LIBRARY), "read": read, "threads": torch.get_num_threads()}
    (folder / ABOUT).write_text(json.dumps(about))


def key_of(step: StepModule, inputs: list[Tensor], phase: tuple, threads: int) -> str:
    """What a step's library depends on, as 16 hex digits: shapes, settings, code, versions and this CPU."""
    source = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        source.update(path.read_bytes())
    values = [
        [(list(t.shape), t.stride(), str(t.dtype)) for t in inputs],
        [list(phase), step.model.config.to_dict(), step.model.training, COMPILER, threads],
        [source.hexdigest(), torch.__version__, cpu_features()],
    ]
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def cpu_features() -> str:
    """What the compiler's code for this CPU depends on: its name and instructions."""
    information = Path("/proc/cpuinfo")
    if not information.exists():
        return platform.processor()
    first_core = information.read_text().split("\n\n")[0].splitlines()
    return "\n".join(line for line in first_core if line.startswith(("model name", "flags", "Features")))


def keep(compiled: Path, folder: Path) -> None:
    """Copy a compiled step into the cache, where others see all of it or nothing.

    Raises:
        OSError: if that is impossible.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    delete_unused(folder.parent)
    with TemporaryDirectory(dir=folder.parent, prefix=".writing-", ignore_cleanup_errors=True) as temporary:
        copy = Path(temporary) / folder.name
        copy.mkdir()
        for name in (LIBRARY, ABOUT):
            shutil.copyfile(compiled / name, copy / name)
        if not folder.exists():  # another process may have been faster
            replace(copy, folder)


def note_use(folder: Path) -> None:
    """Set the time of a step's folder to now, if the cache may be written to."""
    with suppress(OSError):
        os.utime(folder)


def delete_unused(cache: Path) -> None:
    """Delete steps that nobody has loaded for a month, such as those of older code, and what killed processes left."""
    for folder in cache.iterdir():
        with suppress(OSError):  # another process may delete it, too
            if time.time() - folder.stat().st_mtime > UNUSED:
                shutil.rmtree(folder)
