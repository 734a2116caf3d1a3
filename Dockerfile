# The manager alone; agents never run in it, and it needs no privileges.
#
#   docker build -t procguard .
#   docker run -d --name procguard -p 5000:5000 -v procguard:/var/lib/procguard -v ~/.ssh:/home/procguard/.ssh:ro procguard
#   docker exec procguard procguard token create --name laptop
#
# The container's own user is operator without a token inside it only; from outside, use a token (docs/security.md).
# Agents must reach the published port: set web.advertise to the address that they see.
ARG BASE=python:3.13-slim
ARG NODE=node:22-slim

FROM ${NODE} AS web
WORKDIR /src
COPY scripts/setup_web.sh scripts/
COPY scripts/web scripts/web
RUN scripts/setup_web.sh
COPY web web
RUN node scripts/web/bundle.mjs /bundle

FROM ${BASE} AS build
WORKDIR /src
COPY requirements/runtime.lock requirements/
RUN python3 -m venv /opt/procguard \
    && /opt/procguard/bin/pip install --no-cache-dir --no-deps --require-hashes -r requirements/runtime.lock
COPY pyproject.toml README.md LICENSE ./
COPY configs configs
COPY docs docs
COPY inventory inventory
COPY playbooks playbooks
COPY procguard procguard
COPY remote_agent remote_agent
COPY web web
COPY scripts/wheel_hook.py scripts/
COPY --from=web /bundle /bundle
RUN PROCGUARD_WEB_BUNDLE=/bundle /opt/procguard/bin/pip install --no-cache-dir --no-deps .

FROM ${BASE}
RUN useradd --uid 10001 --create-home procguard && install -d -o procguard -g procguard -m 700 /var/lib/procguard
COPY --from=build /opt/procguard /opt/procguard
ENV PATH=/opt/procguard/bin:$PATH XDG_DATA_HOME=/var/lib
USER procguard
WORKDIR /home/procguard
VOLUME /var/lib/procguard
EXPOSE 5000
HEALTHCHECK --interval=10s --timeout=5s --start-period=15s \
    CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:5000/readyz', timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["procguard"]
CMD ["manager"]
