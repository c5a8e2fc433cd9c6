"""The local machine: processes, devices, environment variables, the terminal."""
