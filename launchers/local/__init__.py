"""Processes on this machine, started and watched by torch's elastic agent."""
