"""Sources of images and labels, their splits, and batches of uint8 pixels."""
