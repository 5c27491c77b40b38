"""What each command does, a module each: from a config or a run to its result."""
