# Prepare and train workers.
#
#   docker build -f deploy/worker.Dockerfile -t attune-worker .
#
# TORCH_INDEX_URL chooses the build of torch: PyTorch's own installation page gives the address of the wheel index for
# CPU or for a CUDA version. Empty: what the default package index has, which for Linux on x86-64 is a CUDA build. A
# CUDA build brings its own CUDA libraries, so the image needs none: the host needs NVIDIA's driver and its container
# toolkit.

FROM python:3.11.14-slim-bookworm AS build
ARG TORCH_INDEX_URL=
WORKDIR /src
RUN python -m venv /opt/attune
ENV PATH=/opt/attune/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1

# torch is by far the largest layer and changes least, so it is first.
COPY requirements.lock ./
RUN pip install --constraint requirements.lock ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} torch setuptools

COPY pyproject.toml ./
RUN mkdir core api worker cli migrations \
    && touch README.md LICENSE core/__init__.py api/__init__.py worker/__init__.py cli/__init__.py migrations/__init__.py \
    && pip install --constraint requirements.lock --no-build-isolation ".[worker]"

COPY README.md LICENSE ./
COPY core core
COPY api api
COPY worker worker
COPY cli cli
COPY migrations migrations
RUN pip install --no-deps --no-build-isolation --force-reinstall .

FROM python:3.11.14-slim-bookworm
RUN useradd --system --uid 10001 --home-dir /var/lib/attune --create-home attune
COPY --from=build /opt/attune /opt/attune
COPY deploy/health.py /usr/local/lib/attune/health.py
# Scratch folders and the cache of base models live in the home: give it a volume with room for both.
ENV PATH=/opt/attune/bin:$PATH PYTHONUNBUFFERED=1 ATTUNE_HOME=/var/lib/attune
USER 10001
WORKDIR /var/lib/attune
VOLUME /var/lib/attune
CMD ["python", "-m", "worker"]
