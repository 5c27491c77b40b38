"""What each command does, one module each, from a config or a run to its result."""
