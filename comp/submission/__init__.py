"""Suite layout, submission formats, checks, Kaggle and competition rules. Torch-free."""
