"""The 19 x 5 corruption suite of Hendrycks & Dietterich (2019), generated from any uint8 images, and its files."""
