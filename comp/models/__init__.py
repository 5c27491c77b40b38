"""Networks: the zoo, stems, our own architectures, surgery, weights."""
