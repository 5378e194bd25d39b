"""Typed experiment configuration: the one source of every option's name, default, type and help."""
