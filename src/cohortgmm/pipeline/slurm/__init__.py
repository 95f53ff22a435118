"""What only runs on SLURM need."""
