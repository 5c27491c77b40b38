"""Errors, progress, signals, the device and counter-based randomness: what every other room builds on."""
