"""Benchmarks beside their peers, run by `python -m tests.benchmarks`; they measure, they do not pass or fail."""
