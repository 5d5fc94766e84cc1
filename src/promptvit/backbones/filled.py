"""Which weights a file has filled: timm leaves those that it lacks random and says so in a log at most."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class Filled(TorchFunctionMode):
    """While entered, it notes the tensors that others are copied into: loading does that, initialising does not."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.copy_:
            self.tensors.append(args[0])
        return func(*args, **(kwargs or {}))

    def missing(self, model: nn.Module) -> list[str]:
        """Names of those tensors of `model` that nothing was copied into."""
        filled = {id(tensor) for tensor in self.tensors}
        return [name for name, tensor in model.state_dict(keep_vars=True).items() if id(tensor) not in filled]
