"""Data: who acts in an environment, episodes on disk, and windows of them to train on."""
