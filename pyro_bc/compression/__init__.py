"""From posterior to a compressed network: prune, round, store."""
