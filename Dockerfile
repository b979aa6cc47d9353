# Everything raydissect runs on, from the pinned versions: the same image is head, worker and command line.
FROM python:3.11-slim-bookworm

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0

RUN useradd --create-home --uid 1000 raydissect && install --directory --owner raydissect /data
WORKDIR /opt/raydissect
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY schemas schemas
COPY workers workers
COPY pipeline pipeline
COPY conf conf
RUN pip install --constraint constraints.txt '.[s3]'

USER 1000
WORKDIR /data
CMD ["raydissect", "--help"]
