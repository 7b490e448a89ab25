"""Playing with a trained agent: its policy on new observations, live windows and videos."""
