"""The parameters of a mixture and what follows from them: densities, responsibilities, samples."""
