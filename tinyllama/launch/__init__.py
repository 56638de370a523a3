"""From a checked configuration to running ranks: the run folder, and torch's elastic launcher."""
