# How to build and run it: docs/guide/docker.md
FROM pytorch/pytorch:2.9.0-cuda12.8-cudnn9-runtime
# HOME, USER: of whoever `docker run --user` names, who has none here; PIP_...: also where Python is the system's own.
ENV HOME=/tmp USER=deimv2 PIP_BREAK_SYSTEM_PACKAGES=1 PYTHONUNBUFFERED=1
WORKDIR /app
# What changes seldom first, so that a change of the code installs no package anew.
COPY pyproject.toml .
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > /tmp/needs.txt \
    && pip install --no-cache-dir -r /tmp/needs.txt \
    && rm /tmp/needs.txt \
    && useradd --no-log-init --uid 10001 deimv2
COPY . .
RUN pip install --no-cache-dir . \
    && mkdir -p datasets outputs \
    && chown deimv2 datasets outputs
USER 10001
VOLUME ["/app/datasets", "/app/outputs"]
CMD ["python", "train_deimv2.py", "--help"]
