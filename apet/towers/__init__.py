"""Vision towers: drop tokens between their layers, and share their outputs between methods."""
