#!/bin/sh
# Ends edge and everything that runs because of it on this machine; what it has stored stays. Start the service to go on.
set -u
[ "$(id -u)" = 0 ] || exec sudo "$0" "$@"

bin=@BIN@
data=${EDGE_DATA_DIR:-@DATA@}

# Services of this program, whatever they are called; others may have names like these, too.
# shellcheck disable=SC2013 # their names are words
for unit in $(grep -ls "^ExecStart=$bin " @SYSTEMD_DIR@/edge*.service); do
  systemctl stop "$(basename "$unit")"
done
# shellcheck disable=SC2013 # their names are words
for script in $(grep -ls "^command=\"$bin\"" /etc/init.d/edge*); do
  rc-service "$(basename "$script")" stop
done

# One that was started by hand. Only who holds this data directory is meant.
if pid=$(cat "$data/run/lock" 2>/dev/null) && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = edge ]; then
  kill -TERM "$pid"
  tries=100
  while [ -d "/proc/$pid" ] && [ "$tries" -gt 0 ]; do
    tries=$((tries - 1))
    sleep 0.1
  done
  [ -d "/proc/$pid" ] && kill -KILL "$pid"
fi

# Containers, mounts, control groups, links, routes, packet filter tables: by what the kernel knows.
# A configuration that cannot be read any more must not keep them.
"$bin" teardown --data-dir "$data" || exec "$bin" teardown --config /dev/null --data-dir "$data"
