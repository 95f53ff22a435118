"""The numerical core: Gaussian mixtures and their EM. Needs numpy only; no I/O but a model's own file."""
