# Flink for the jobs: JobManager, TaskManager and submission, from the apache-flink wheel. No torch in it.
#   docker build -f infra/compose/flink.Dockerfile -t penstock-flink .
ARG PENSTOCK_IMAGE_FLINK_BASE=python:3.11-slim-bookworm
ARG PENSTOCK_IMAGE_MAVEN=maven:3-eclipse-temurin-17

FROM ${PENSTOCK_IMAGE_MAVEN} AS jars
COPY infra/pom.xml /tmp/build/
RUN [ -d /opt/jars/flink ] || mvn -q -B -C -f /tmp/build/pom.xml -Djars.directory=/opt/jars generate-resources

FROM ${PENSTOCK_IMAGE_FLINK_BASE} AS packages
LABEL penstock.image=flink
ARG PIP_INDEX_URL
COPY infra/compose/flink.lock /tmp/build/
# A base that has Java and the locked packages already (tests/e2e/images) has nothing to fetch here.
# slim bases leave out /usr/share/man, without which Java's package does not install.
RUN { command -v java >/dev/null \
      || { mkdir -p /usr/share/man/man1 && apt-get update -qq \
           && apt-get install -y -qq --no-install-recommends openjdk-17-jre-headless && rm -rf /var/lib/apt/lists/*; }; } \
 && { [ -x /opt/penstock/bin/python ] || python3 -m venv /opt/penstock; } \
 && /opt/penstock/bin/python -m pip install --no-cache-dir --no-compile --disable-pip-version-check -q \
      --no-deps --require-hashes -r /tmp/build/flink.lock \
 && useradd --uid 1000 --create-home penstock \
 && install -d -o penstock -g penstock /var/lib/penstock /var/lib/penstock/flink /var/lib/penstock/flink/checkpoints
COPY --from=jars /opt/jars/flink /opt/jars/flink

FROM packages AS wheel
COPY . /tmp/source
RUN /opt/penstock/bin/python -m pip wheel --no-index --no-deps --no-build-isolation -q -w /tmp/wheel /tmp/source

FROM packages
COPY --from=wheel /tmp/wheel /tmp/wheel
# The import compiles what the workers use, once and not at every start; a broken image fails here.
RUN /opt/penstock/bin/python -m pip install --no-index --no-deps --no-compile -q /tmp/wheel/*.whl \
 && /opt/penstock/bin/python -m penstock.infra.compose.imports flink
ENV PATH=/opt/penstock/bin:$PATH \
    PENSTOCK_DATA_DIR=/var/lib/penstock \
    PENSTOCK_JARS=/opt/jars \
    PYTHONUNBUFFERED=1
USER penstock
WORKDIR /var/lib/penstock
ENTRYPOINT ["python", "-m", "penstock.infra.compose.flink"]
