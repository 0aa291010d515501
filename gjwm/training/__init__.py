"""Training of a world model, and what it needs to go on after an interruption."""
