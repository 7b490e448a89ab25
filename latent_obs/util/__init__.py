"""Shared by all packages: errors, whole files, Ctrl-C, devices and threads, and the settings of runs."""
