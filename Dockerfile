# gjwm on a CPU. Build with the address that PyTorch's install page names for CPU wheels:
#     docker build --build-arg TORCH_INDEX=... -t gjwm .
#     docker run --rm -v "$PWD:/out" gjwm play two-room film=/out
# Without it pip takes torch from its usual index, on Linux with CUDA, some gigabytes.
FROM python:3.11-slim

# headless OpenGL, in which dm_control's pictures are drawn
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libegl1 libgl1 libgl1-mesa-dri \
    && rm -rf /var/lib/apt/lists/*
ENV MUJOCO_GL=egl PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

WORKDIR /gjwm
COPY constraints.txt pyproject.toml README.md LICENSE ./
ARG TORCH_INDEX=""
RUN pip install --constraint constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch
COPY gjwm gjwm
COPY envs envs
COPY configs configs
RUN pip install --constraint constraints.txt .

WORKDIR /work
ENTRYPOINT ["gjwm"]
CMD ["--help"]
