# How to build and run it: docs/guide/docker.md
FROM pytorch/pytorch:2.9.0-cuda12.8-cudnn9-runtime
# HOME: caches of a user who has no home here (docker run --user); PIP_...: also where Python is the system's own.
ENV HOME=/tmp PIP_BREAK_SYSTEM_PACKAGES=1 PYTHONUNBUFFERED=1
WORKDIR /app
COPY . .
RUN pip install --no-cache-dir . \
    && useradd --no-log-init deimv2 \
    && mkdir -p datasets outputs \
    && chown deimv2 datasets outputs
USER deimv2
VOLUME ["/app/datasets", "/app/outputs"]
CMD ["python", "train_deimv2.py", "--help"]
