"""Reports: what a command found out, as data that any format can render."""
