"""The model: layers, initialisation, generation."""
