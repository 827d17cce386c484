"""A stand-in for CUDA graphs that needs no GPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Operations that wait for a GPU or copy from the processor, so they cannot be recorded.
WAITS = ("_local_scalar_dense", "nonzero", "item", "masked_select", "equal.default", "lift_fresh")


class Recorder:
    """Repeats recorded operations on the same memory, as a CUDA graph does. It has no streams and no memory pool."""

    def __init__(self) -> None:
        self.recorded, self.replayed = 0, 0

    def __call__(self, function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        operations: list[tuple[Any, Any, Any, Any]] = []

        class Recording(TorchDispatchMode):
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                assert not any(one in str(func) for one in WAITS), func
                if func in (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default):
                    assert all(one is None or one.dtype != torch.bool for one in args[1]), "truth values choose"
                result = func(*args, **(kwargs or {}))
                operations.append((func, args, kwargs or {}, result))
                return result

        with Recording():
            result = function()
        self.recorded += 1
        return partial(self._replay, operations), result

    def _replay(self, operations: list[tuple[Any, Any, Any, Any]]) -> None:
        self.replayed += 1
        for func, args, kwargs, result in operations:
            if func.is_view:
                continue
            again = func(*args, **kwargs)
            for old, new in zip(
                *(one if isinstance(one, tuple | list) else [one] for one in (result, again)), strict=True
            ):
                if new.data_ptr() != old.data_ptr():
                    old.copy_(new)
