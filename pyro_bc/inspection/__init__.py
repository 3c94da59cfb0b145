"""Looking at a posterior: ArviZ, diagnostics, pictures."""
