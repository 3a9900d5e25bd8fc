"""Engines: each runs a model inside an actor."""
