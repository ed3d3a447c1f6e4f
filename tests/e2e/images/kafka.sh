#!/usr/bin/env bash
# As apache/kafka's launcher reads its variables: KAFKA_LOG_DIRS is log.dirs; "__" is "_" and "___" is "-".
set -euo pipefail
readonly CONF=/etc/kafka/server.properties
readonly NOT_PROPERTIES='HEAP_OPTS|JVM_PERFORMANCE_OPTS|OPTS|LOG4J_OPTS|GC_LOG_OPTS|JMX_OPTS|VERSION'

env | sed -nE 's/^KAFKA_([A-Z0-9_]+)=(.*)$/\1=\2/p' | grep -vE "^($NOT_PROPERTIES)=" | while IFS='=' read -r name value; do
  name=$(tr 'A-Z' 'a-z' <<<"$name" | sed -e 's/___/-/g' -e 's/__/\x01/g' -e 's/_/./g' -e 's/\x01/_/g')
  printf '%s=%s\n' "$name" "$value"
done >"$CONF"

run() { # shellcheck disable=SC2086  options are words
  java ${KAFKA_HEAP_OPTS:-} ${KAFKA_JVM_PERFORMANCE_OPTS:-} -Dlog4j2.level=WARN -cp '/opt/kafka/libs/*' "$@"
}
[ -f /var/lib/kafka/data/meta.properties ] || run kafka.tools.StorageTool format --ignore-formatted -t "$CLUSTER_ID" -c "$CONF"
# shellcheck disable=SC2086
exec java ${KAFKA_HEAP_OPTS:-} ${KAFKA_JVM_PERFORMANCE_OPTS:-} -Dlog4j2.level=WARN -cp '/opt/kafka/libs/*' kafka.Kafka "$CONF"
