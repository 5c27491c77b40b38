"""Training-time augmentation: what (policies) and how (on batches, and before that while images are read), and mixing of samples."""
