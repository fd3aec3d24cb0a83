"""Build modules without the values that new weights get."""

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

FILLS = (torch.Tensor.normal_, torch.Tensor.uniform_)


class NoInitialValues(TorchFunctionMode):
    """A context in which new weights get no values, as others are loaded next or nothing but their shapes is needed.

    Args:
        device: where the weights are made, such as "meta", which has no memory. All else stays on the default device,
            because arithmetic on "meta" imports PyTorch's compiler, which takes a second.
    """

    def __init__(self, device: str | None = None):
        super().__init__()
        self.device = device

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None):
        kwargs = kwargs or {}
        if func is torch.empty and self.device is not None:
            kwargs = kwargs | {"device": self.device}
        if func in FILLS:
            return args[0].zero_()  # `trunc_normal_` goes on drawing until it has numbers within bounds
        if getattr(func, "__module__", None) == torch.nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
