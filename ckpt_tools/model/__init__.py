"""What a checkpoint is: plain data with no I/O and no third-party import."""
