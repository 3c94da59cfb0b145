"""What a fit knows: moments and statistics of every layer, thresholds, predictions under drawn weights."""
