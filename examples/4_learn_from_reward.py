"""Learn a task from its reward while acting: `python examples/4_learn_from_reward.py`.

Some twelve minutes on one core for a cartpole's swing-up from states. A folder under runs/ keeps
the model, the returns and what a run goes on from when it is interrupted.
"""

import os

import numpy as np

import gjwm
from gjwm.planning.agent import reward_agent
from gjwm.rl import OnlineSettings, RewardRecipe, learn

SMALL = "GJWM_SMALL" in os.environ  # as the tests run it: seconds, and a bad agent
TASK = dict(env_id="gjwm/cartpole-swingup-v0", action_repeat=2)


def main():
    steps = dict(steps=35_000)
    if SMALL:
        steps = dict(steps=60, aimless_steps=40, batch=8, episodes=1, evaluate_every=60)
        TASK["max_episode_steps"] = 20
    recipe = RewardRecipe(online=OnlineSettings(**steps), seed=21)
    model = learn(**TASK, recipe=recipe, run="runs/examples-cartpole", workers=0)

    # Act with what was learned: the planner, with values beyond its horizon.
    agent = reward_agent(
        model, recipe.planner(), horizon=recipe.online.horizon, discount=recipe.learner.discount
    )
    env = gjwm.make_env(**TASK)
    o, _ = env.reset(seed=1_000_000)
    earned, over = 0.0, False
    while not over:
        a = agent.act(o[None])[0]
        o, reward, terminated, truncated, _ = env.step(np.asarray(a))
        earned, over = earned + reward, terminated or truncated
    print(f"one episode earns {earned:.0f} of at most 1000")
    return earned


if __name__ == "__main__":
    main()
