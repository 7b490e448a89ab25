"""What every part shares: errors, atomic writes, devices and threads, Ctrl-C, and the settings of runs."""
