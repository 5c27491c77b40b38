"""Weights & Biases, as a view of run folders.

The training process logs to W&B when epochs end (`tracker.py`, `writer.py`), and W&B's own service process uses the
network. `comp leaderboard --sync` uploads what W&B did not confirm or was logged offline (`upload.py`).

    RUN/wandb/
      tracking.json                the W&B run's id, and how far the run is logged
      run-*/  offline-run-*/       what each process logged, in W&B's own files
      mistakes.npz                 the most confident mistakes on validation images
"""
