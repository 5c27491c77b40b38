"""Errors, progress, signals, the device and counter-based randomness: the base of every other room."""
