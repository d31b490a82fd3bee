"""A fine-tuned run behind HTTP: requests, their batches, and the figures about both."""
