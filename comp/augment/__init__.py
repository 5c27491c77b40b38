"""Training-time augmentation: what (policies) and how (per image, per batch), and mixing of samples."""
