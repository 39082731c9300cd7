#!/bin/sh
# Ends edge and everything that runs because of it on this machine; what it has stored stays. Start the service to go on.
set -u
[ "$(id -u)" = 0 ] || exec sudo "$0" "$@"

bin=@BIN@
data=${EDGE_DATA_DIR:-@DATA@}

for unit in /etc/systemd/system/edge*.service; do
  [ -e "$unit" ] && command -v systemctl >/dev/null && systemctl stop "$(basename "$unit")"
done
for script in /etc/init.d/edge*; do
  [ -x "$script" ] && command -v rc-service >/dev/null && rc-service "$(basename "$script")" stop
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
exec "$bin" teardown --data-dir "$data"
