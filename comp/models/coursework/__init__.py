"""Networks of the coursework: MLPs, residual nets, and convolution from first principles."""
