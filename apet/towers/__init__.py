"""Vision towers: dropping tokens between their layers, and sharing their outputs between methods."""
