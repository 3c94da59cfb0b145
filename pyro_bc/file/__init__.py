"""The ``.pbc`` file: what it holds, its bytes, and the network that comes out. Knows nothing of Pyro."""
