# The roles: `penstock serve ...`, `penstock topics create`, and every other command.
#   docker build -f infra/compose/roles.Dockerfile -t penstock-roles .
# ACCELERATOR=cpu leaves out what torch needs on a GPU alone (2 GB); cuda keeps it.
ARG PENSTOCK_IMAGE_ROLES_BASE=python:3.11-slim-bookworm

FROM ${PENSTOCK_IMAGE_ROLES_BASE} AS packages
LABEL penstock.image=roles
ARG ACCELERATOR=cpu
# An index of your own, for this step alone: --build-arg PIP_INDEX_URL=...
ARG PIP_INDEX_URL
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
COPY --from=wheel /tmp/wheel /tmp/wheel
# The import compiles what the roles use, once and not at every start; a broken image fails here.
RUN /opt/penstock/bin/python -m pip install --no-index --no-deps --no-compile -q /tmp/wheel/*.whl \
 && /opt/penstock/bin/python -m penstock.infra.compose.imports roles
ENV PATH=/opt/penstock/bin:$PATH \
    PENSTOCK_DATA_DIR=/var/lib/penstock \
    PYTHONUNBUFFERED=1 \
    OMP_NUM_THREADS=1 \
    OMP_WAIT_POLICY=PASSIVE \
    GOMP_SPINCOUNT=0 \
    TOKENIZERS_PARALLELISM=false \
    HF_HUB_OFFLINE=1
USER penstock
WORKDIR /var/lib/penstock
ENTRYPOINT ["penstock"]
