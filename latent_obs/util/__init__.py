"""Shared by all packages: errors, atomic writes, devices and threads, Ctrl-C, and the settings of runs."""
