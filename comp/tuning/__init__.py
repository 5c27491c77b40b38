"""`comp tune`: Optuna studies of many trainings; the only room that imports Optuna."""
