"""Ranks, the DeepSpeed engine and checkpoints."""
