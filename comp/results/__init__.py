"""Run folders, predictions, metrics and their views: plots, reports, the leaderboard. Torch-free."""
