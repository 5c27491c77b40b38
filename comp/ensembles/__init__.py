"""Ensembles: collect and align members, combine their predictions, measure the gain."""
