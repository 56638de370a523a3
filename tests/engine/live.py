"""What PyTorch allocates: the bytes of all storages that are there, now and at the most."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Live(TorchDispatchMode):
    """Within, counts every storage from the op that returns it until it is freed, beside those that were there."""

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[int, weakref.ref[Any]] = {}
        self.now = self.most = 0
        gc.collect()
        for tensor in [each for each in gc.get_objects() if issubclass(type(each), Tensor)]:
            self._see(tensor)
            if tensor.is_leaf and tensor.grad is not None:
                self._see(tensor.grad)
        self.before = self.now

    def _see(self, tensor: Tensor) -> None:
        if tensor.device.type == "meta" or tensor.layout is not torch.strided:
            return
        storage = tensor.untyped_storage()
        key, n_bytes = storage._cdata, storage.nbytes()
        if key not in self._known and n_bytes:
            self.now += n_bytes
            self.most = max(self.most, self.now)

            def gone(_: object) -> None:
                self.now -= n_bytes
                del self._known[key]

            self._known[key] = weakref.ref(storage, gone)

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in tree_leaves(out):
            if isinstance(each, Tensor):
                self._see(each)
        return out
