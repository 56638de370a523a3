"""TinyLlama: declarative experiments with small language models trained far past Chinchilla-optimal."""

__version__ = "0.1.0"
