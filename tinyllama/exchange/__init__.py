"""Trained models in and out: Hugging Face folders, their tokenizers and model cards, GGUF files."""
