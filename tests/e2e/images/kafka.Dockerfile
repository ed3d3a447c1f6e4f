# Stands in for apache/kafka: the same version from Maven's jars, told by the same KAFKA_ variables.
ARG BASE
FROM ${BASE}
COPY kafka/ /opt/kafka/libs/
COPY kafka.sh /opt/kafka/run.sh
RUN useradd --uid 1000 --create-home appuser && install -d -o appuser -g appuser /var/lib/kafka /var/lib/kafka/data /etc/kafka
USER appuser
ENTRYPOINT ["bash", "/opt/kafka/run.sh"]
