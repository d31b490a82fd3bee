"""The commands of `python -m trainer`, one a file: its options and what it prints; the work is done elsewhere."""
