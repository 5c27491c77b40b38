"""comp: from a competition's data to a scored, valid submission.csv."""

__version__ = "0.1.0"
