"""Starts training on one host or many: torch is not needed, so that a login node can."""
