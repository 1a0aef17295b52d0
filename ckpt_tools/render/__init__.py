"""One file per output format; each turns a report into lines and knows nothing of verbs or terminals."""
