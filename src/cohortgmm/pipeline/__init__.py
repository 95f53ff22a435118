"""A run of the pipeline: what its jobs ask for, who else is at work, what has come of them. No numerics, no AnnData."""
