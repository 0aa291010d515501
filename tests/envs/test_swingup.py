"""Claims about the torch pendulum and cartpole: they are dm_control's, and they solve their
equations of motion.
"""

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import gjwm.envs.cartpole as cartpole
import gjwm.envs.pendulum as pendulum
from gjwm.envs.cartpole import CartpoleEnv, CartpoleVectorEnv, CartpoleWorld
from gjwm.envs.making import make_env
from gjwm.envs.pendulum import PendulumEnv, PendulumVectorEnv, PendulumWorld

WORLDS = {"pendulum": PendulumWorld, "cartpole": CartpoleWorld}


def planes(values):
    return tuple(torch.tensor(float(v), dtype=torch.float64) for v in values)


def suite(domain):
    """dm_control's environment itself."""
    env = make_env(f"gjwm/{domain}-swingup-v0", obs="state").unwrapped
    env.reset(seed=0)
    return env


def put(env, qpos, qvel):
    state = env.get_state()
    state[1 : 1 + len(qpos)], state[1 + len(qpos) : 1 + 2 * len(qpos)] = qpos, qvel
    env.set_state(state)


@pytest.mark.parametrize(
    "domain, start, scale, tolerance",
    [
        ("pendulum", ([2.0], [0.0]), 0.7, 1e-11),
        ("cartpole", ([0.0, np.pi], [0.0, 0.1]), 0.0, 1e-11),
        # Against the ends of the rail MuJoCo's solver is iterative: it stops at a tolerance of its
        # own.
        ("cartpole", ([1.7, 0.5], [2.0, 0.0]), 0.6, 2e-5),
        ("cartpole", ([-1.75, -2.0], [-3.0, 1.0]), -0.6, 2e-5),
    ],
)
def test_a_trajectory_is_dm_controls_own_over_300_steps(domain, start, scale, tolerance):
    """States and rewards, in float64, from identical states under identical actions."""
    env, world, rng = suite(domain), WORLDS[domain](obs="state"), np.random.default_rng(0)
    put(env, *start)
    state = planes([*start[0], *start[1]])
    nq, ends = len(start[0]), 0
    for t in range(300):
        action = np.clip(scale * np.sin(t / 30) + 0.3 * rng.normal(), -1, 1).astype(np.float32)
        _, reward, *_ = env.step(action[None])
        after = world.advance(state, planes([action]))
        due = world.reward(state, planes([action]), after)
        state = after
        truth = env.get_state()[1 : 1 + 2 * nq]
        assert np.abs(truth - np.array([float(s) for s in state])).max() < tolerance
        assert abs(reward - float(due)) < max(tolerance, 1e-9)
        ends += domain == "cartpole" and abs(truth[0]) > cartpole.RAIL
    assert ends > 3 or tolerance < 1e-6  # the rail's end was met


@pytest.mark.parametrize("domain", WORLDS)
def test_float32_stays_with_dm_control_for_100_steps(domain):
    env, world = suite(domain), make_env(f"gjwm/torch-{domain}-swingup-v0", obs="state").unwrapped
    put(env, *{"pendulum": ([2.0], [0.0]), "cartpole": ([0.0, np.pi], [0.0, 0.1])}[domain])
    count = 2 if domain == "pendulum" else 4
    world.reset(seed=0, options={"state": env.get_state()[1 : 1 + count]})
    for t in range(100):
        action = np.array([np.sin(t / 10) / 3], np.float32)
        (mine, reward, *_), (theirs, due, *_) = world.step(action), env.step(action)
        assert np.abs(mine - theirs).max() < 1e-4 and abs(reward - due) < 1e-4
    assert (
        np.abs(world.position - env.position).max() < 1e-4
        and world.success_radius == env.success_radius
    )


def test_constants_are_those_of_the_compiled_models():
    model = suite("pendulum")._model
    assert model.body("pole").inertia[1] + 1.0 * 0.5**2 == pytest.approx(pendulum.INERTIA, rel=1e-9)
    assert model.opt.timestep == pendulum.TIMESTEP and model.dof_damping[0] == pendulum.DAMPING
    model = suite("cartpole")._model
    assert model.body("pole_1").inertia[1] + 0.1 * 0.5**2 == pytest.approx(
        cartpole.INERTIA, rel=1e-9
    )
    assert model.dof_invweight0[0] == pytest.approx(cartpole.INVERSE_MASS, rel=1e-9)
    assert model.opt.timestep == cartpole.TIMESTEP and model.actuator_gear[0, 0] == cartpole.FORCE
    assert model.dof_damping.tolist() == [cartpole.CART_DAMPING, cartpole.POLE_DAMPING]


def lagrangian(kind, y, action):
    """Accelerations from energies alone: M(q) q'' = Q + dT/dq - d/dt(M) q' - dV/dq, by automatic
    differentiation.
    """
    q, v = (torch.tensor(part, dtype=torch.float64) for part in np.split(np.asarray(y), 2))

    def kinetic(q, v):
        if kind == "pendulum":
            return 0.5 * pendulum.INERTIA * v[0] ** 2
        own = cartpole.INERTIA - cartpole.POLE_MASS * cartpole.CENTRE**2
        x_dot = v[0] + cartpole.CENTRE * torch.cos(q[1]) * v[1]
        z_dot = -cartpole.CENTRE * torch.sin(q[1]) * v[1]
        return 0.5 * (
            cartpole.CART_MASS * v[0] ** 2
            + cartpole.POLE_MASS * (x_dot**2 + z_dot**2)
            + own * v[1] ** 2
        )

    def potential(q):
        if kind == "pendulum":
            return pendulum.MASS * 9.81 * pendulum.LENGTH * torch.cos(q[0])
        return cartpole.POLE_MASS * 9.81 * cartpole.CENTRE * torch.cos(q[1])

    if kind == "pendulum":
        force = torch.stack([action - pendulum.DAMPING * v[0]])
    else:
        force = torch.stack([10 * action - 5e-4 * v[0], -2e-6 * v[1]])
    jacobian, hessian = torch.autograd.functional.jacobian, torch.autograd.functional.hessian
    mass = hessian(lambda u: kinetic(q, u), v)

    def momentum(p):
        return jacobian(lambda u: kinetic(p, u), v, create_graph=True)

    drift = jacobian(momentum, q) @ v
    pull = jacobian(lambda p: kinetic(p, v) - potential(p), q)
    return [*v.tolist(), *torch.linalg.solve(mass, force + pull - drift).tolist()]


@pytest.mark.parametrize(
    "domain, start", [("pendulum", [2.0, 0.5]), ("cartpole", [0.1, 2.5, 0.3, -1.0])]
)
def test_the_equations_are_those_of_the_energies_and_of_an_independent_integrator(domain, start):
    """Against scipy's integration of the Lagrangian equations over half a second under a constant
    action.
    """
    world, action, steps = WORLDS[domain](obs="state"), 0.2, 25 if domain == "pendulum" else 50
    dt = {"pendulum": pendulum.TIMESTEP, "cartpole": cartpole.TIMESTEP}[domain]
    act = torch.tensor(action, dtype=torch.float64)
    truth = solve_ivp(
        lambda t, y: lagrangian(domain, y, act), (0, steps * dt), start, rtol=1e-8, atol=1e-10
    ).y[:, -1]
    state = planes(start)
    for _ in range(steps):
        state = world.advance(state, (act,))
    error = np.abs(np.array([float(s) for s in state]) - truth).max()
    # Runge-Kutta of order 4 at 0.01 s, and the first-order Euler step at 0.02 s that dm_control's
    # pendulum has.
    assert error < {"pendulum": 0.2, "cartpole": 1e-6}[domain]
    assert error > 1e-12


def test_the_pendulums_error_is_its_integrators_and_shrinks_with_the_step(monkeypatch):
    act, world, errors = torch.tensor(0.2, dtype=torch.float64), PendulumWorld(obs="state"), []
    truth = solve_ivp(
        lambda t, y: lagrangian("pendulum", y, act), (0, 0.4), [2.0, 0.5], rtol=1e-8, atol=1e-10
    ).y[:, -1]
    for halvings in range(4):
        monkeypatch.setattr(pendulum, "TIMESTEP", 0.02 / 2**halvings)
        state = planes([2.0, 0.5])
        for _ in range(20 * 2**halvings):
            state = world.advance(state, (act,))
        errors.append(np.abs(np.array([float(s) for s in state]) - truth).max())
    ratios = np.array(errors[:-1]) / np.array(errors[1:])
    assert (ratios > 1.8).all() and (ratios < 2.2).all()  # first order


def test_cartpole_keeps_its_energy_when_nothing_takes_it(monkeypatch):
    (
        monkeypatch.setattr(cartpole, "CART_DAMPING", 0.0),
        monkeypatch.setattr(cartpole, "POLE_DAMPING", 0.0),
    )

    def energy(s):
        _, angle, v, w = s
        turning = 0.5 * cartpole.INERTIA * w**2 + cartpole.COUPLING * torch.cos(angle) * v * w
        return 0.5 * cartpole.MASS * v**2 + turning + cartpole.COUPLING * 9.81 * torch.cos(angle)

    world, state = CartpoleWorld(obs="state"), planes([0.0, 1.0, 0.0, 0.5])
    before = energy(state)
    for _ in range(200):
        state = world.advance(state, planes([0.0]))
    assert abs(energy(state) - before) < 1e-6


@pytest.mark.parametrize("world", WORLDS.values())
def test_mirrored_states_move_mirrored(world):
    w, state, other = world(obs="state"), None, None
    rng = np.random.default_rng(0)
    start = rng.normal(size=len(w.state_names))
    state, other = planes(start), planes(-start)
    for _ in range(100):
        action = rng.uniform(-1, 1)
        state, other = w.advance(state, planes([action])), w.advance(other, planes([-action]))
    assert all(a == -b for a, b in zip(state, other))


@pytest.mark.parametrize("make, least", [(PendulumVectorEnv, 550), (CartpoleVectorEnv, 750)])
@pytest.mark.parametrize("repeat", [1, 4])
def test_the_scripted_policy_swings_up_from_everywhere(make, least, repeat):
    env = make(num_envs=50, obs="state", action_repeat=repeat)
    env.reset(seed=0)
    returns = np.zeros(50)
    for _ in range(1000 // repeat):
        _, reward, _, truncated, info = env.step(env.expert_action())
        returns += reward
    assert returns.min() > least and truncated.all() and info["final_info"]["success"].all()


def test_random_actions_do_not_swing_up():
    rng = np.random.default_rng(0)
    for make in (PendulumVectorEnv, CartpoleVectorEnv):
        env = make(num_envs=50, obs="state", reward="sparse")
        env.reset(seed=0)
        returns = sum(
            env.step(rng.uniform(-1, 1, (50, 1)).astype(np.float32))[1] for _ in range(300)
        )
        assert np.median(returns) < 5


@pytest.mark.parametrize("make, view", [(PendulumEnv, pendulum.VIEW), (CartpoleEnv, cartpole.VIEW)])
def test_the_picture_shows_where_the_pole_is(make, view):
    """The red end, or the red pole's middle, lies where the state says: to the right for positive
    angles, up for small.
    """
    env, size = make(size=96), 96
    for angle in (-2.5, -0.7, 0.0, 0.4, 1.6, 3.0):
        state = [angle, 0.0] if make is PendulumEnv else [0.6, angle, 0.0, 0.0]
        picture = env.reset(seed=0, options={"state": state})[0].astype(float)
        red = np.clip(picture[0] - picture[1] - 20, 0, None)
        grid = (np.arange(size) + 0.5) / size * view - view / 2  # m from the middle
        x, y = (red.sum(0) * grid).sum() / red.sum(), (red.sum(1) * grid).sum() / red.sum()
        reach, base = (0.5, 0.0) if make is PendulumEnv else (0.5, 0.6)
        assert x == pytest.approx(base + reach * np.sin(angle), abs=0.012)
        assert y == pytest.approx(-reach * np.cos(angle), abs=0.012)


def test_smooth_and_sparse_rewards():
    env = PendulumEnv(obs="state", reward="smooth")
    env.reset(seed=0, options={"state": [0.0, 0.0]})
    assert env.step(np.zeros(1, np.float32))[1] == 1.0
    sparse = CartpoleEnv(obs="state", reward="sparse")
    sparse.reset(seed=0, options={"state": [0.0, 0.0, 0.0, 0.0]})
    assert sparse.step(np.zeros(1, np.float32))[1] == 1.0
    sparse.set_state([0.3, 0.0, 0.0, 0.0])
    assert sparse.step(np.zeros(1, np.float32))[1] == 0.0
