"""Predictions of several runs made into one: who may join, how they are combined, what it gains. Torch-free."""
