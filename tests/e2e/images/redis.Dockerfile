# Stands in for redis: Debian's package, its data where the public image has it.
ARG BASE
FROM ${BASE}
RUN install -d -o redis -g redis /data
WORKDIR /data
USER redis
CMD ["redis-server"]
