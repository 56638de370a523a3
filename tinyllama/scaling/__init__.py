"""What many runs say together: laws fitted to their losses, with intervals, plots and a report."""
