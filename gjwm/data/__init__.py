"""Data: who acts in an environment, episodes on disk, and windows of them to train on.

`acting` is the one loop that steps environments, `behaviours` act to collect, `collect` fills a
dataset, `dataset` keeps episodes on disk, `replay` keeps steps in memory and draws windows.
"""

from gjwm.data.replay import ReplayBuffer

__all__ = ["ReplayBuffer"]
