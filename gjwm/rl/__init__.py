"""Learning from reward: a world model with values and a policy, from data alone or while acting.

learner   one update of everything
stream    environments to act in, which can come back to a given moment
loop      act, remember, update, evaluate, and go on exactly after an interruption
returns   what an agent earns in environments of its own
"""

from gjwm.rl.exploration import Exploration, Explorer
from gjwm.rl.learner import RewardLearner, lambda_returns
from gjwm.rl.loop import check_schedule, pretrain, train_online
from gjwm.rl.oracle import simulator_actor
from gjwm.rl.returns import Act, ReturnCurve, play_returns, return_report
from gjwm.rl.stream import Stream, Transition

__all__ = [
    "Act",
    "Exploration",
    "Explorer",
    "ReturnCurve",
    "RewardLearner",
    "Stream",
    "Transition",
    "check_schedule",
    "lambda_returns",
    "play_returns",
    "pretrain",
    "return_report",
    "simulator_actor",
    "train_online",
]
