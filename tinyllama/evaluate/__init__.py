"""What a model has learnt, measured on held-out text."""
