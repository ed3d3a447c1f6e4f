# The roles: `penstock serve ...`, `penstock topics create`, and every other command.
#   docker build -f infra/compose/roles.Dockerfile -t penstock-roles .
# ACCELERATOR=cpu leaves out what torch needs on a GPU alone (2 GB); cuda keeps it, and has a C compiler besides: Triton
# compiles what it talks to the driver with on the machine that runs it.
ARG PENSTOCK_IMAGE_ROLES_BASE=python:3.11-slim-bookworm

FROM ${PENSTOCK_IMAGE_ROLES_BASE} AS packages
LABEL penstock.image=roles
ARG ACCELERATOR=cpu
# An index of your own, for this step alone: --build-arg PIP_INDEX_URL=...
ARG PIP_INDEX_URL
# A base whose Python is Debian's has its headers in a package; others bring them.
RUN [ "$ACCELERATOR" != cuda ] || { headers=$(python3 -c 'import os, sysconfig; \
      print("" if os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")) else "libpython3-dev")') \
 && apt-get update -qq \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends gcc libc6-dev $headers \
 && rm -rf /var/lib/apt/lists/*; }
COPY infra/compose/roles.lock infra/compose/prune.py /tmp/build/
# The lock is complete (and leaves out what pyproject.toml overrides): no dependencies are looked for. A base that has
# the packages already (tests/e2e/images) has nothing to fetch here.
RUN { [ -x /opt/penstock/bin/python ] || python3 -m venv /opt/penstock; } \
 && /opt/penstock/bin/python -m pip install --no-cache-dir --no-compile --disable-pip-version-check -q \
      --no-deps --require-hashes -r /tmp/build/roles.lock \
 && { [ "$ACCELERATOR" = cuda ] || /opt/penstock/bin/python /tmp/build/prune.py; } \
 && useradd --uid 1000 --create-home penstock \
 && install -d -o penstock -g penstock /var/lib/penstock

FROM packages AS wheel
COPY . /tmp/source
RUN /opt/penstock/bin/python -m pip wheel --no-index --no-deps --no-build-isolation -q -w /tmp/wheel /tmp/source

FROM packages
ARG ACCELERATOR=cpu
COPY --from=wheel /tmp/wheel /tmp/wheel
# The import compiles what the roles use, once and not at every start; a broken image fails here. For cuda it also builds
# what Triton will build, as far as that needs no driver.
RUN /opt/penstock/bin/python -m pip install --no-index --no-deps --no-compile -q /tmp/wheel/*.whl \
 && /opt/penstock/bin/python -m penstock.infra.compose.imports "$([ "$ACCELERATOR" = cuda ] && echo cuda || echo roles)"
ENV PATH=/opt/penstock/bin:$PATH \
    PENSTOCK_DATA_DIR=/var/lib/penstock \
    TRITON_CACHE_DIR=/var/lib/penstock/triton \
    PYTHONUNBUFFERED=1 \
    OMP_NUM_THREADS=1 \
    OMP_WAIT_POLICY=PASSIVE \
    GOMP_SPINCOUNT=0 \
    TOKENIZERS_PARALLELISM=false \
    HF_HUB_OFFLINE=1
USER penstock
WORKDIR /var/lib/penstock
ENTRYPOINT ["penstock"]
