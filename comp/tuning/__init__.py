"""`comp tune`: studies of many trainings, with Optuna. The only room that knows it."""
