"""The E-steps: ways to the same expected moments, each the fastest for some kind of cells."""
