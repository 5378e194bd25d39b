"""SLURM: a job whose batch step is the agent, and whose processes are steps of it."""
