"""What many runs say together: laws fitted to their losses, with intervals, and what the laws foretell."""
