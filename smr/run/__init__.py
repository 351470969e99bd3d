"""The course of a run: flags, folder, devices, checkpoints."""
