"""One thread per test process: on a busy machine two threads that wait for each other are many
times slower.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)
