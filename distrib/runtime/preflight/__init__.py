"""A few seconds before the first step in which what would hang or fail later is found, and named."""
