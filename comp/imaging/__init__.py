"""Tensor image operations and counter-based randomness, shared by augmentation and corruptions."""
