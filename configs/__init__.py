"""Hydra configuration groups, one per protocol; every yaml is a constructor's keyword arguments."""
