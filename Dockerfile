# visualchat-serve in a container; docs/serving.md says how it is built and run.
FROM python:3.11-slim

WORKDIR /app
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY conf ./conf
COPY src ./src

# PyPI's torch brings CUDA along. For a smaller image without: --build-arg PIP_EXTRA_INDEX_URL=..., an index of CPU builds.
ARG PIP_EXTRA_INDEX_URL
RUN pip install --no-cache-dir -c constraints.txt ".[serve,quantized]"

RUN useradd --create-home visualchat
USER visualchat
WORKDIR /srv

EXPOSE 8000
# http.client goes by no proxy, whatever the environment says.
HEALTHCHECK --start-period=5m CMD ["python", "-c", "import http.client, sys; at = http.client.HTTPConnection('127.0.0.1', 8000); at.request('HEAD', '/health'); sys.exit(at.getresponse().status != 200)"]
# Any address but this machine's own needs keys: VISUALCHAT_API_KEYS. docker stop's SIGTERM lets running answers end.
ENTRYPOINT ["visualchat-serve", "folder=/model", "host=0.0.0.0"]
