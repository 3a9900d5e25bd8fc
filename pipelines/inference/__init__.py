"""The Ray Data plan: preprocess rows on CPU tasks, answer them in GPU actors, survive failures."""
