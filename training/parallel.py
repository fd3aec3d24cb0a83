"""How a run uses its machine: devices, precision, sharding, compilation, activation checkpointing."""

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import torch
from accelerate import Accelerator, DistributedType, PartialState
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import (
    DynamoBackend,
    FullyShardedDataParallelPlugin,
    GradientAccumulationPlugin,
    TorchDynamoPlugin,
    gather_object,
    is_bf16_available,
)
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from model.block import Block
from model.merge import Merge
from model.tables import HashTables
from training.config import Config, TrainConfig
from training.dropout import draw_dropout_in_bulk
from training.speed import keep_freed_memory
from training.threads import set_threads
from utils.errors import Mistake, UserError

T = TypeVar("T")


def build_accelerator(config: Config) -> Accelerator:
    """An Accelerator for the configured accumulation and precision, which is no longer "auto".

    Raises:
        UserError: on a precision or an attention backend that the device does not have.
    """
    precision = config.train.mixed_precision
    if precision == "bf16" and not is_bf16_available():
        raise UserError(Mistake("train.mixed_precision", "bf16", "no, or fp16 on a GPU, as this device has no bf16"))
    accumulation = GradientAccumulationPlugin(
        num_steps=config.train.gradient_accumulation_steps,
        sync_with_dataloader=False,  # there is no loader whose end would cut an accumulation short
    )
    sharded = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    sharding = sharding_plugin() if sharded else None
    accelerator = Accelerator(
        mixed_precision=precision,
        gradient_accumulation_plugin=accumulation,
        fsdp_plugin=sharding,
        dynamo_plugin=TorchDynamoPlugin(backend=DynamoBackend.NO),  # `prepare` compiles
    )

    # Accelerate does not shard on CPUs, unless its state says so.
    if sharding and accelerator.distributed_type == DistributedType.MULTI_CPU:
        accelerator.state.fsdp_plugin = sharding
        accelerator.state.distributed_type = PartialState().distributed_type = DistributedType.FSDP

    device_type = accelerator.device.type
    if precision == "fp16" and device_type != "cuda":
        raise UserError(Mistake("train.mixed_precision", "fp16", f"no or bf16 on a device of type {device_type}"))
    if config.model.attention == "flex" and device_type != "cuda":
        raise UserError(Mistake("model.attention", "flex", f"any other backend on a device of type {device_type}"))
    if device_type == "cuda":
        torch.set_float32_matmul_precision("high" if config.train.tf32 else "highest")
    return accelerator


def prepare_process(device: torch.device) -> None:
    """On a CPU, set the threads, and keep freed memory: both before anything is computed or measured."""
    if device.type == "cpu":
        set_threads()
        keep_freed_memory()


@contextmanager
def raised_by_all() -> Generator[None]:
    """Raise the UserErrors of any process on all of them, at the end of the block, so that none waits for another.

    Every process enters and leaves the block.
    """
    mistakes: tuple[Mistake | str, ...] = ()
    try:
        yield
    except UserError as error:
        mistakes = error.mistakes
    for each in gather_object([mistakes]):
        if each:
            raise UserError(*each)


@contextmanager
def main_process_first(accelerator: Accelerator) -> Generator[None]:
    """The main process runs the block, then the others do. A UserError on one is raised on all."""
    if not accelerator.is_main_process:
        with raised_by_all():
            pass  # waits for the main process
    with raised_by_all():
        yield
    if accelerator.is_main_process:
        with raised_by_all():
            pass  # waits for the others


def sharding_plugin() -> FullyShardedDataParallelPlugin:
    """FSDP2, with each block as a unit. It keeps float32, as autocast alone lowers the precision, sharded or not."""
    from torch.distributed.fsdp import MixedPrecisionPolicy  # slow to import, and not needed elsewhere

    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=[Block.__name__],
        state_dict_type="SHARDED_STATE_DICT",
        mixed_precision_policy=MixedPrecisionPolicy(),
    )


def prepare(
    accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer, config: TrainConfig
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Model and optimizer, ready to train: compiled, checkpointed and sharded as configured. Names of weights stay."""
    draw_dropout_in_bulk(model)
    sharded = accelerator.distributed_type == DistributedType.FSDP
    if accelerator.device.type == "cpu" and not sharded:  # GPUs do not exchange sparse gradients, nor do shards
        make_gradients_of_tables_sparse(model)
    wrap_blocks(model, is_compiling(config), config.activation_checkpointing)
    if sharded and accelerator.native_amp:
        model.forward = accelerator.autocast()(model.forward)  # Accelerate omits it when it shards
    model, optimizer = accelerator.prepare(model, optimizer)
    if sharded:
        create_optimizer_state(model, optimizer)
    return model, optimizer


def make_gradients_of_tables_sparse(model: nn.Module) -> None:
    """Have tables of n-grams compute gradients of the rows that a step reads, a sixth of them, and step no others."""
    for module in model.modules():
        if isinstance(module, HashTables):
            module.sparse = True


def is_compiling(config: TrainConfig) -> bool:
    """Whether the config or `accelerate launch` asks for compiled blocks."""
    return config.compile or os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() != "no"


def create_optimizer_state(model: nn.Module, optimizer: AcceleratedOptimizer) -> None:
    """Create the state of a sharded optimizer now, at step 0. PyTorch would create it when a checkpoint first reads it,
    by a step at a learning rate of 0, which would count."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict  # slow to import

    get_optimizer_state_dict(model, optimizer.optimizer)
    for state in optimizer.state.values():
        if "step" in state:
            state["step"].zero_()


def wrap_blocks(model: nn.Module, compiling: bool, checkpointing: bool = False) -> None:
    """Compile a model's blocks and merges for training, and recompute the blocks in the backward pass.

    Linear merges are too small to gain. Evaluation uses other shapes, and runs uncompiled. Accelerate's regional
    compilation does not fit: it needs all blocks in one list.
    """
    modules = [module for module in model.modules() if isinstance(module, Block | Merge)]
    if compiling:  # PyTorch compiles a method for 8 kinds of modules by default, and leaves other kinds uncompiled
        torch.compiler.config.recompile_limit += len(modules)
    for module in modules:
        if compiling:
            compiled = torch.compile(module.forward, dynamic=False)
            set_forward(module, partial(forward_by_mode, module, compiled, module.forward))
        if checkpointing and isinstance(module, Block):
            set_forward(module, partial(checkpoint, module.forward, use_reentrant=False))


def set_forward(module: nn.Module, forward: Callable[..., object]) -> None:
    """Replace the forward pass of one module. Its submodules and the names of its weights stay."""
    module.forward = forward


def forward_by_mode(module: nn.Module, compiled: Callable[..., T], plain: Callable[..., T], *args: object) -> T:
    """A module's forward pass: compiled in training, plain in evaluation."""
    return compiled(*args) if module.training else plain(*args)


def full_tensor(t: torch.Tensor) -> torch.Tensor:
    """A tensor, gathered if it is sharded over processes, all of which must call this."""
    return t.full_tensor() if isinstance(t, DTensor) else t
