"""Settings and commands: the only composition root."""
