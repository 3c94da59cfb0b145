"""What a program stands on: devices, random state, several processes, files that are written whole or not at all."""
