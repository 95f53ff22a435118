"""Modules that are used only on SLURM clusters: commands, jobs of killed runs, and shards."""
