"""The recipe of the demo models: a vision tower on dense labels, then a decoder on questions."""
