"""In which order samples are read, and handing them over."""
