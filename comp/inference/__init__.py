"""From weights and images to predictions."""
