"""Before anything runs: calls, memory, hours, what cannot work, what this machine lacks."""
