"""Names of tasks that are registered: registering them must import neither dm_control nor torch."""

_BY_DOMAIN = {
    "acrobot": ("swingup", "swingup_sparse"),
    "ball_in_cup": ("catch",),
    "cartpole": (
        "balance",
        "balance_sparse",
        "swingup",
        "swingup_sparse",
        "two_poles",
        "three_poles",
    ),
    "cheetah": ("run",),
    "dog": ("stand", "walk", "trot", "run", "fetch"),
    "finger": ("spin", "turn_easy", "turn_hard"),
    "fish": ("upright", "swim"),
    "hopper": ("stand", "hop"),
    "humanoid": ("stand", "walk", "run", "run_pure_state"),
    "humanoid_CMU": ("stand", "walk", "run"),
    "lqr": ("lqr_2_1", "lqr_6_2"),
    "manipulator": ("bring_ball", "bring_peg", "insert_ball", "insert_peg"),
    "pendulum": ("swingup",),
    "point_mass": ("easy", "hard"),
    "quadruped": ("walk", "run", "escape", "fetch"),
    "reacher": ("easy", "hard"),
    "stacker": ("stack_2", "stack_4"),
    "swimmer": ("swimmer6", "swimmer15"),
    "walker": ("stand", "walk", "run"),
}

TASKS: tuple[tuple[str, str], ...] = tuple(
    (domain, task) for domain, tasks in _BY_DOMAIN.items() for task in tasks
)

# Of `gjwm.envs.point_maze`; "#" is wall. Mazes are square: a cell's side is 1 / (cells in a row).
MAZES: dict[str, tuple[str, ...]] = {
    "open": ("#######", "#.....#", "#.....#", "#.....#", "#.....#", "#.....#", "#######"),
    "u": ("#####", "#...#", "###.#", "#...#", "#####"),
    "cross": ("#######", "###.###", "###.###", "#.....#", "###.###", "###.###", "#######"),
    "rooms": ("#######", "#..#..#", "#.....#", "##.#.##", "#.....#", "#..#..#", "#######"),
    "medium": (
        "########",
        "#..##..#",
        "#..#...#",
        "##...###",
        "#..#...#",
        "#.#..#.#",
        "#...#..#",
        "########",
    ),
    "spiral": (
        "#########",
        "#.......#",
        "#######.#",
        "#.....#.#",
        "#.###.#.#",
        "#.#...#.#",
        "#.#####.#",
        "#.......#",
        "#########",
    ),
}
