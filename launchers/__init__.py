"""Running one command as N processes: local, SLURM, Ray."""
