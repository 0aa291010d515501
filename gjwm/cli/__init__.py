"""One module per command: it builds plain objects from a config and calls the library. Only here
and in `gjwm.cli.app` is hydra.
"""
