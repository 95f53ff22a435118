"""A run of the pipeline: requests of its jobs, locks, progress and failures. Imports neither numerics nor AnnData."""
