"""Processes on the machines of a Ray cluster, placed by Ray Train."""
