"""Files: patient ids as file names, writing files completely or not at all, ``.npz`` archives and their marks."""
