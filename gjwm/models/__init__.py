"""Everything with weights: encoders, dynamics, heads, decoder, world model."""
