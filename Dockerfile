# Everything raydissect runs on, from the pinned versions: the same image is head, worker, scheduler and command line.
# Whether it is healthy depends on which of these it is: docker-compose.yml and conf/k8s say how to ask.
FROM python:3.11-slim-bookworm

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    ARROW_DEFAULT_MEMORY_POOL=system \
    MALLOC_ARENA_MAX=2

RUN useradd --create-home --uid 1000 raydissect && install --directory --owner raydissect /data /cache
WORKDIR /opt/raydissect
COPY pyproject.toml constraints.txt ./
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
    print(*p['dependencies'], *p['optional-dependencies']['s3'], sep='\n')" > requirements.txt \
    && PIP_CONSTRAINT=constraints.txt pip install --requirement requirements.txt
COPY README.md LICENSE ./
COPY schemas schemas
COPY workers workers
COPY pipeline pipeline
COPY conf conf
RUN PIP_CONSTRAINT=/opt/raydissect/constraints.txt pip install --no-deps .

USER 1000
WORKDIR /data
CMD ["raydissect", "--help"]
