"""Running one command as N processes: local, SLURM, Ray.

A launch is described by a plan in the run directory (``plan``); an agent beside the processes makes one
attempt after the other (``agent``), and each target starts the processes of an attempt in its own way.
"""
