"""What a run will take, worked out before anything starts."""
