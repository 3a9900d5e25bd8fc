"""How the demo models are trained: a vision tower on dense labels, then a decoder on what it sees."""
