"""The command line: `app` (which commands there are, exit codes), `commands`, `console` (what is printed)."""
