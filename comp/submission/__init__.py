"""What is competed in: layout of suites, submission formats, rules. Torch-free."""
