"""Tensor image operations on uint8 batches, every sample with its own amounts: for augmentation and corruptions."""
