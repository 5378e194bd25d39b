"""Writing data sets: ground truth in, one file or shards out, by one process or many."""
