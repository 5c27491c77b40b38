"""Weights & Biases, as a view of run folders.

A training tells W&B nothing itself: `tracker.py` starts a process, `writer.py`, that watches the run's folder and
writes what it finds there (`told.py`) into W&B's own offline files below it. Where one is logged in, another process,
W&B's own, uploads those files as they grow. So a step costs nothing, whatever the network does; what was not uploaded
when the training's last ten seconds are over lies on the disk until `comp leaderboard --sync` (`upload.py`).

    RUN/wandb/
      tracking.json            the W&B run's id, and how far it was told
      offline-run-*/           a segment for each process that trained the run, all with the same id
      mistakes.npz             validation images that it was surest of and wrong
      writer.log  upload.log   what the two processes said

A study that has ended is told likewise, by `studies.py` and its process `summary.py`, below its own folder.
"""
