"""The 19 x 5 corruption suite of Hendrycks & Dietterich (2019), its generator and its files."""
