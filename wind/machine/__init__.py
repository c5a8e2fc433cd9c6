"""The machine a process runs on: other processes, devices, the environment, the terminal."""
