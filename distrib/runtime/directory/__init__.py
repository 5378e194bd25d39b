"""The run directory: one writer at a time, and what it keeps of what happened where."""
