"""The one OmegaConf resolver that `conf/` uses."""

from omegaconf import OmegaConf


def precision_on(device: str) -> str:
    """The arithmetic that suits a device: bf16 on GPUs, fp32 on CPUs."""
    return "bf16" if device == "cuda" else "fp32"


def register() -> None:
    """Make the resolver known to OmegaConf; calling it again changes nothing."""
    OmegaConf.register_new_resolver("precision_on", precision_on, replace=True)
