"""What an interpolation may call: the one OmegaConf resolver that `conf/` uses, and not the environment."""

from __future__ import annotations

from omegaconf import OmegaConf


def precision_on(device: str) -> str:
    """The arithmetic that suits a device: bf16 on GPUs, fp32 on CPUs."""
    return "bf16" if device == "cuda" else "fp32"


def from_environment(name: str, *_: object) -> str:
    """Takes the place of OmegaConf's own `oc.env`, however it is spelled or nested; never reads the variable."""
    raise ValueError(
        f"takes {name} from the environment, and run folders and MLflow would keep it: write the value out; a secret "
        "stays in the environment, where the library that needs it finds it"
    )


def register() -> None:
    """Make both known to OmegaConf; calling it again changes nothing."""
    OmegaConf.register_new_resolver("precision_on", precision_on, replace=True)
    OmegaConf.register_new_resolver("oc.env", from_environment, replace=True)
