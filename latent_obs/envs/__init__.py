"""Making environments: by id, in parallel, from the old Gym API, and restarting after faults."""
