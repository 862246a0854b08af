# syntax=docker/dockerfile:1
# docs/deployment.md says how to use it. For NVIDIA GPUs:
#   docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 --tag cskt:cuda .
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=serve
WORKDIR /build
COPY pyproject.toml constraints.txt README.md LICENSE NOTICE ./
COPY src src
RUN python -m venv /opt/cskt \
 && /opt/cskt/bin/pip install --no-cache-dir --extra-index-url "$TORCH_INDEX" --constraint constraints.txt ".[$EXTRAS]"

FROM ${PYTHON_IMAGE}
RUN groupadd --gid 1000 cskt && useradd --uid 1000 --gid cskt --no-create-home --home-dir /tmp cskt
COPY --from=build /opt/cskt /opt/cskt
# Nothing is written but below /gallery, /tmp and, if a published model is downloaded, /models.
ENV PATH=/opt/cskt/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    CSKT_CACHE=/models
USER 1000:1000
WORKDIR /gallery
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=10s --start-period=2m \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=8)"]
ENTRYPOINT ["cskt"]
CMD ["serve", "/gallery", "--host", "0.0.0.0", "--token-file", "/run/secrets/token"]
