"""One module per command. With `gjwm.cli` all that knows hydra: it builds plain objects from a config and calls the library."""
