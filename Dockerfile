# agentrl in a container. For CPUs:
#   docker build --tag agentrl .
#   docker run --rm --user "$(id -u):$(id -g)" --volume "$PWD:/work" agentrl algo=pact
# For NVIDIA GPUs, whose build of PyTorch is the one on PyPI (docker run then takes --gpus all):
#   docker build --tag agentrl --build-arg TORCH_INDEX=https://pypi.org/simple .
# With vLLM:
#   docker build --tag agentrl --build-arg TORCH_INDEX=https://pypi.org/simple --build-arg EXTRAS=vllm \
#     --build-arg CONSTRAINTS=constraints-vllm.txt .
ARG PYTHON=3.11
FROM python:${PYTHON}-slim-bookworm

ARG TORCH=torch==2.13.0
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=bfcl
ARG CONSTRAINTS=constraints.txt
# Without its dependencies, whose pins conflict with ours; the extra `bfcl` has those needed. Empty leaves it out.
ARG BFCL=bfcl-eval==2026.3.23

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# git: provenance of a checkout, and installation from repositories; gcc: kernels that triton compiles while it runs.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc git libc6-dev \
    && rm -rf /var/lib/apt/lists/*

ENV PATH=/opt/agentrl/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# hadolint ignore=DL3013
RUN python -m venv /opt/agentrl && pip install --index-url "${TORCH_INDEX}" "${TORCH}"

WORKDIR /src
COPY pyproject.toml README.md LICENSE constraints.txt constraints-vllm.txt ./
COPY agentrl agentrl
COPY conf conf
# hadolint ignore=DL3013
RUN pip install --constraint "${CONSTRAINTS}" ".[${EXTRAS}]" \
    && { [ -z "${BFCL}" ] || pip install --no-deps "${BFCL}"; }

# Any user may run it (docker run --user): a home that all can write to, and a name where /etc/passwd has none.
RUN mkdir --mode=1777 /home/agentrl
ENV HOME=/home/agentrl USER=agentrl
USER 1000:1000
WORKDIR /work
ENTRYPOINT ["agentrl"]
