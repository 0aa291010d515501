"""Learning from reward: a world model with values and a policy, from data alone or while acting.

training  the whole of it: `learn(env_id, RewardRecipe(...))`
settings  what can be chosen
learner   one update of everything
stream    environments to act in, which can come back to a given moment
loop      act, remember, update, evaluate, and go on exactly after an interruption
returns   what an agent earns in environments of its own
"""

from gjwm.rl.exploration import Explorer
from gjwm.rl.learner import RewardLearner, lambda_returns
from gjwm.rl.loop import Hooks, pretrain, train_online
from gjwm.rl.oracle import RewardOracle
from gjwm.rl.returns import PolicyActor, ReturnCurve, play_returns, return_report
from gjwm.rl.settings import Exploration, LearnerSettings, OnlineSettings, Oracle
from gjwm.rl.stream import Stream
from gjwm.rl.training import RewardRecipe, learn

__all__ = [
    "Exploration",
    "Explorer",
    "Hooks",
    "LearnerSettings",
    "OnlineSettings",
    "Oracle",
    "PolicyActor",
    "ReturnCurve",
    "RewardLearner",
    "RewardOracle",
    "RewardRecipe",
    "Stream",
    "lambda_returns",
    "learn",
    "play_returns",
    "pretrain",
    "return_report",
    "train_online",
]
