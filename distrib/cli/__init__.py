"""One small file a command: options in, one call, printed result."""
