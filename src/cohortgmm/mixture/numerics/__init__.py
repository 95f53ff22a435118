"""Arrays and matrices: tiles of rows, Gaussian factors, packed matrices, normalisation."""
