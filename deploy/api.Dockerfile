# The API, the migrations and the reconciler. Carries no torch.
#
#   docker build -f deploy/api.Dockerfile -t attune-api .

FROM python:3.11.14-slim-bookworm AS build
WORKDIR /src
RUN python -m venv /opt/attune
ENV PATH=/opt/attune/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1

# The lock file is a list of constraints here: its exact versions, but only of what this image's extras ask for.
# Dependencies come first and alone, so that a change of code does not install them again.
COPY requirements.lock pyproject.toml ./
RUN mkdir core api worker cli migrations \
    && touch README.md LICENSE core/__init__.py api/__init__.py worker/__init__.py cli/__init__.py migrations/__init__.py \
    && pip install --constraint requirements.lock setuptools \
    && pip install --constraint requirements.lock --no-build-isolation ".[api]"

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
ENV PATH=/opt/attune/bin:$PATH PYTHONUNBUFFERED=1 ATTUNE_HOST=0.0.0.0 ATTUNE_PORT=8000 ATTUNE_HOME=/var/lib/attune
USER 10001
WORKDIR /var/lib/attune
EXPOSE 8000
CMD ["python", "-m", "api"]
