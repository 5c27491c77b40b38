"""Weights & Biases, as a view of run folders.

The training process tells W&B at the ends of its epochs (`tracker.py`, `writer.py`); W&B's own service process does the
network. What W&B did not confirm, or was kept offline, is uploaded by `comp leaderboard --sync` (`upload.py`).

    RUN/wandb/
      tracking.json                the W&B run's id, and how far it was told
      run-*/  offline-run-*/       what each process told, in W&B's own files
      mistakes.npz                 validation images that the run was surest of and wrong
"""
