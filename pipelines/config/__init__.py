"""Everything a user can ask for: flags, YAML, methods and budgets, sweeps, paths and models."""
