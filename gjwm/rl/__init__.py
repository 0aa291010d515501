"""Learning from reward: a world model with values and a policy, from data alone or while acting.

learner   one update of everything, and the agent that plans with what was learned
stream    environments to act in, which can come back to a given moment
loop      act, remember, update, evaluate, and go on exactly after an interruption
returns   what an agent earns in environments of its own
"""

from gjwm.online.exploration import Exploration, Explorer
from gjwm.online.learner import RewardLearner, lambda_returns, reward_agent
from gjwm.online.loop import check_schedule, pretrain, train_online
from gjwm.online.oracle import simulator_actor
from gjwm.online.returns import Act, ReturnCurve, play_returns, return_report
from gjwm.online.stream import Stream, Transition

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
    "reward_agent",
    "simulator_actor",
    "train_online",
]
