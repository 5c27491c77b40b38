"""The command line: `app` (commands, exit codes), `commands` (one file a group), `console` (printed output)."""
