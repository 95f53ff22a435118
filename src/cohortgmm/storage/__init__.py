"""Files: patients as file names, writing without half-written files, ``.npz`` archives and their marks."""
