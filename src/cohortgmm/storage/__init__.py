"""Files: names of patients as file names, writing without half-written files, .npz archives."""
