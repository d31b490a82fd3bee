"""The tasks of fine-tuning, one a file: how files are read, what is predicted from what, and how it is scored."""
