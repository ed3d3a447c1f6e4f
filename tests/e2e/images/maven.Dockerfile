# Stands in for maven: the jars that pom.xml names, as this machine's Maven fetched and checked them.
ARG BASE
FROM ${BASE}
COPY flink/ /opt/jars/flink/
