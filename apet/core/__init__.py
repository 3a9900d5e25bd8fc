"""The ApET algorithm: choose a basis, measure approximation errors, keep tokens, merge the rest."""
