"""The model's tensors are as small as the kernels' here."""

from tests.kernels.conftest import one_thread

__all__ = ["one_thread"]
