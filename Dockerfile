# Seeker with everything it needs, the default model included: runs without a network.
#
#   docker build -t seeker .                               CPU; add --build-arg PIP_EXTRA_INDEX_URL=<PyTorch CPU wheel index>
#   docker build -t seeker:cuda --build-arg VARIANT=cuda . NVIDIA GPU; run it with --gpus all
#   docker run --rm -v "$PWD/lightning_logs:/home/seeker/app/lightning_logs" seeker --help
FROM python:3.11-slim-bookworm

# A compiler belongs to the run time too: triton and torch.compile build kernels when they are first used.
COPY scripts/apt-packages.txt /tmp/apt-packages.txt
RUN apt-get update \
    && grep -vE '^[[:space:]]*(#|$)' /tmp/apt-packages.txt | xargs apt-get install -y --no-install-recommends \
    && rm -rf /var/lib/apt/lists/* /tmp/apt-packages.txt

RUN useradd --create-home --uid 1000 seeker && install -d -o seeker -g seeker /home/seeker/app
USER seeker
WORKDIR /home/seeker/app
COPY --chown=seeker:seeker . .

ARG VARIANT=cpu
ARG PIP_EXTRA_INDEX_URL
RUN PIP_NO_CACHE_DIR=1 bash scripts/setup.sh --${VARIANT}

ENV PATH=/home/seeker/app/.venv/bin:$PATH
ENTRYPOINT ["seeker"]
CMD ["--help"]
