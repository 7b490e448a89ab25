"""Measurements behind the speed and learning claims; `python -m benchmarks.<name> --help` tells the options of each."""
