"""A network as a graph of tensor operations: read from any ``nn.Module``, run, followed unit by unit, exported."""
