"""Run folders, predictions, metrics, and what is shown of them: plots, reports, the leaderboard. Torch-free."""
