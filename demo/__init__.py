"""The demo models and the recipe that trained them."""
