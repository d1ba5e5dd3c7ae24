"""TorchScript: where small steps are so many that Python, between them, takes a quarter of the time."""

import warnings
from collections.abc import Callable

import torch
from torch import nn

EXAMPLE_SIZE = (2, 16)  # clips and frames to trace with: what has been traced takes any numbers of them


@torch.no_grad()
def to_script(function: Callable, example: tuple[torch.Tensor, ...]) -> torch.jit.ScriptModule:
    """What a function (of tensors alone) or module does, and returns, for inputs of the kind of `example`."""
    with warnings.catch_warnings():
        # torch would rather have a compiler installed, or the length of time fixed; and its own LSTM checks sizes.
        warnings.simplefilter("ignore")
        module = function if isinstance(function, nn.Module) else _Module(function)
        script = torch.jit.freeze(torch.jit.trace(module.eval(), example, check_trace=False))
    for _ in range(2):  # the first two calls prepare all later ones
        script(*example)
    return script


class _Module(nn.Module):
    def __init__(self, function: Callable):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)
