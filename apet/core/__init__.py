"""The ApET algorithm: choose a basis, measure the approximation error, keep and merge. Tensors in, tensors out."""
