"""Training-time augmentation: what (policies), how (while an image is read, then in batches), and mixing of samples."""
