"""What holds for all tests: one thread per process, and which tests are slow.

`make test` leaves out the tests marked `slow`, `make test-slow` runs only those. A test is slow
when it takes more than about ten seconds of a quiet core: whole runs through the command line,
kill -9 trials, compilation, hundreds of processes.
"""

import errno
import os
import signal
from contextlib import contextmanager

# Two threads that wait for each other are many times slower on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def one_thread():
    """Again for every test: a command that a test before it ran in this process set its own."""
    torch.set_num_threads(1)


@pytest.fixture
def no_room(monkeypatch):
    """A context in which no file is given room in advance; gives the sizes that were asked for."""

    @contextmanager
    def full():
        asked = []

        def allocate(file, begin, size):
            asked.append(size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(os, "posix_fallocate", allocate, raising=False)
            yield asked

    return full


@pytest.fixture
def largest_file():
    """A context in which no file grows beyond a number of bytes: writing on fails with EFBIG."""
    resource = pytest.importorskip("resource", reason="Windows limits no file's size")

    @contextmanager
    def limited(size):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)

    return limited


# "file::test" or "file::test[case]", in the order of the files. tests/test_package.py sees that
# each exists.
SLOW = [
    "cli/test_cli.py::test_films_of_any_checkpoint_for_several_seeds",
    "cli/test_cli.py::test_refining_may_train_an_ensemble_whose_members_are_planned_on",
    "cli/test_cli.py::test_a_study_of_seeds_summarises_them_and_does_nothing_twice",
    "cli/test_cli.py::test_a_grid_on_the_command_line_lists_what_fails_and_the_rest_is_whole",
    "cli/test_cli.py::test_the_same_seed_trains_the_same_weights_and_another_seed_others",
    "cli/test_cli.py::test_wandb_offline_needs_no_account_and_stays_in_the_run_folder",
    "docs/test_examples.py::test_an_exported_model_is_planned_with_without_the_code_that_made_it",
    "docs/test_examples.py::test_they_run_in_reading_order_at_small_size",
    "docs/test_pages.py::test_a_how_to_works_word_for_word_in_a_copy_of_the_repository",
    "docs/test_pages.py::test_a_page_runs[docs/online.md]",
    "envs/test_push.py::test_the_scripted_policy_pushes_nearly_every_block_to_its_pose",
    "envs/test_vector.py::test_two_hundred_open_and_closed_leave_nothing_behind",
    "evaluation/test_surprise.py::"
    "test_a_model_that_knows_its_world_notices_and_stays_calm_otherwise",
    "models/dynamics/test_memory.py::test_velocity_is_learned_from_the_past",
    "objectives/test_discrepancies.py::test_compiled_kernels_agree_with_eager_ones",
    "objectives/test_distributed.py::test_two_processes_equal_one",
    "planning/test_agent.py::test_a_compiled_agent_plans_the_same",
    "rl/test_online.py::test_a_compiled_update_is_the_plain_one",
    "rl/test_online.py::test_acting_learns_what_pays",
    "rl/test_online.py::test_the_command_learns_from_data_alone",
    "rl/test_online.py::test_the_command_learns_resumes_and_reports",
    "rl/test_online.py::test_the_command_plays_an_oracle_and_the_curves_are_drawn",
    "test_benchmarks.py::test_a_benchmark_fills_its_table",
    "training/test_processes.py::"
    "test_a_killed_process_ends_all_and_a_resumed_training_comes_to_the_same_end",
    "training/test_processes.py::"
    "test_two_processes_have_the_losses_of_one_and_the_first_alone_writes",
    "training/test_processes.py::test_what_dynamics_count_is_counted_over_all_processes",
]


def pytest_collection_modifyitems(items):
    for item in items:
        name = item.nodeid.removeprefix("tests/")
        if any(name == slow or name.startswith(slow + "[") for slow in SLOW):
            item.add_marker(pytest.mark.slow)
