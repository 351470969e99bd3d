"""What the modules at the top stand on: the course of a run, its record, and reading files."""
