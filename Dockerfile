# gjwm on a CPU:
#     docker build -t gjwm .
#     docker run --rm -v "$PWD:/out" gjwm play two-room film=/out
# torch comes from the folder wheels/, if its CPU build is there; else, on Linux, it is the build with
# CUDA, some gigabytes.
FROM python:3.11-slim

# headless OpenGL, in which dm_control's pictures are drawn
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libegl1 libgl1 libgl1-mesa-dri \
    && rm -rf /var/lib/apt/lists/*
ENV MUJOCO_GL=egl PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

WORKDIR /gjwm
COPY . .
RUN pip install --constraint constraints.txt --find-links wheels .

WORKDIR /work
ENTRYPOINT ["gjwm"]
CMD ["--help"]
