"""What runs a model inside an actor."""
