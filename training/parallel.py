"""How a run lies on its machine: devices, precision, sharding, compilation and what the backward pass keeps."""

import os
from collections.abc import Callable
from functools import partial

import torch
from accelerate import Accelerator, DistributedType, PartialState
from accelerate.utils import (
    DynamoBackend,
    FullyShardedDataParallelPlugin,
    GradientAccumulationPlugin,
    TorchDynamoPlugin,
    parse_flag_from_env,
)
from torch import nn
from torch.utils.checkpoint import checkpoint

from model.block import Block
from model.levels import Merge
from training.config import Config, TrainConfig
from training.dropout import draw_dropout_in_bulk
from training.speed import keep_freed_memory


def build_accelerator(config: Config) -> Accelerator:
    """Device, precision, sharding and accumulation, on as many threads as the machine has cores for.

    Raises:
        ValueError: on a precision that the device does not have.
    """
    precision = config.train.mixed_precision
    if precision == "auto":
        precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        if precision == "no" and is_quick_in_bf16():
            precision = "bf16"
    sharding = sharding_plugin() if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true" else None
    accelerator = Accelerator(
        mixed_precision=precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=config.train.gradient_accumulation_steps, sync_with_dataloader=False
        ),
        fsdp_plugin=sharding,
        dynamo_plugin=TorchDynamoPlugin(backend=DynamoBackend.NO),  # `prepare` compiles
        log_with=None if config.wandb.mode == "disabled" else "wandb",
    )
    if sharding and accelerator.distributed_type == DistributedType.MULTI_CPU:  # where Accelerate would not shard
        accelerator.state.fsdp_plugin = sharding
        accelerator.state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
    if precision == "fp16" and accelerator.device.type != "cuda":
        raise ValueError(f"train.mixed_precision: got fp16 on {accelerator.device.type}, allowed there: no or bf16")
    if accelerator.device.type == "cpu":  # `accelerate launch` leaves a process one thread
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
        keep_freed_memory()
    if accelerator.device.type == "cuda":
        torch.set_float32_matmul_precision("high" if config.train.tf32 else "highest")
    return accelerator


def is_quick_in_bf16() -> bool:
    """Whether the GPU, or else the CPU, has instructions for products in bfloat16."""
    if torch.accelerator.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU"):
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    known = getattr(torch.cpu, "get_capabilities", dict)()
    return known.get("avx512_bf16", False) or known.get("amx_bf16", False)


def sharding_plugin() -> FullyShardedDataParallelPlugin:
    """FSDP2 over blocks. Autocast alone lowers the precision, as it does without sharding, for the same maths."""
    from torch.distributed.fsdp import MixedPrecisionPolicy  # heavy, and not needed elsewhere

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
    """Model and optimizer, compiled, checkpointed and spread as was wished. Names of weights stay."""
    compiling = config.compile or os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() != "no"
    draw_dropout_in_bulk(model)
    wrap_blocks(model, compiling, config.activation_checkpointing)
    if accelerator.distributed_type == DistributedType.FSDP and accelerator.native_amp:
        model.forward = accelerator.autocast()(model.forward)  # which Accelerate leaves out when it shards
    model, optimizer = accelerator.prepare(model, optimizer)
    if accelerator.distributed_type == DistributedType.FSDP:
        from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict  # heavy, too

        # The first look at a sharded optimizer's state steps it at rate 0, to have one. That step must not count.
        get_optimizer_state_dict(model, optimizer.optimizer)
        for state in optimizer.state.values():
            if "step" in state:
                state["step"].zero_()
    return model, optimizer


def wrap_blocks(model: nn.Module, compiling: bool, checkpointing: bool = False) -> None:
    """Have a model's blocks and merges compiled for training, and blocks computed again in the backward pass.

    Evaluation, which meets other shapes, runs them as they are. Not Accelerate's regional compilation, which asks for
    blocks in one list.
    """
    for module in [module for module in model.modules() if isinstance(module, Block | Merge)]:
        if compiling:
            compiled = torch.compile(module.forward, dynamic=False)
            module.forward = partial(forward_in_training, module, compiled, module.forward)
        if checkpointing and isinstance(module, Block):
            module.forward = partial(checkpoint, module.forward, use_reentrant=False)


def forward_in_training(module: nn.Module, compiled: Callable, plain: Callable, *args):
    """A module's forward pass, compiled if it trains."""
    return (compiled if module.training else plain)(*args)


def full_tensor(t: torch.Tensor) -> torch.Tensor:
    """A tensor, gathered if it is sharded over processes, all of which must call this."""
    return getattr(t, "full_tensor", lambda: t)()
