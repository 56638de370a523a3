"""The model's tensors are as small as the kernels' here, and some run on the kernels."""

from tests.kernels.conftest import interpreted, one_thread

__all__ = ["interpreted", "one_thread"]
