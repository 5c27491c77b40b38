"""The verbs, a module for each group of them: thin, and without torch until one of them runs."""
