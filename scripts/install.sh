#!/bin/sh
# Installs edge as a service, or changes how it is installed: run it again with other settings.
#
#   install.sh                        a server with its node
#   EDGE_URL=https://SERVER:6443 EDGE_TOKEN=K10… install.sh
#                                     a node of that server's cluster
#   … | sh -s - server --tls-san=x    arguments are edge's: the command, or flags of it
#
# Settings (K3S_… and INSTALL_K3S_… are understood as well):
#   EDGE_URL, EDGE_TOKEN, EDGE_TOKEN_FILE, and every other EDGE_… that edge reads: kept in /etc/edge/NAME.env (0600)
#   INSTALL_EDGE_EXEC          command and flags, as the arguments
#   INSTALL_EDGE_BINARY        the program, when it is on this machine [default: `edge` beside this script, if there is one]
#   INSTALL_EDGE_SHA256        its checksum [default: what BINARY.sha256 says, if there is one]
#   INSTALL_EDGE_DOWNLOAD_URL  where edge-amd64, edge-arm64 and their .sha256 are, when it is not
#   INSTALL_EDGE_SKIP_DOWNLOAD true: use the program that is installed already
#   INSTALL_EDGE_BIN_DIR       where it goes [default: /usr/local/bin]
#   INSTALL_EDGE_NAME          name of the service [default: edge, edge-agent for nodes]; `edge-` is put before it
#   INSTALL_EDGE_SKIP_ENABLE   true: do not start it at boot, nor now
#   INSTALL_EDGE_SKIP_START    true: do not start it now
#   INSTALL_EDGE_SYSTEMD_DIR   [default: /etc/systemd/system]
#
# Everything is checked before anything is changed. edge-uninstall.sh takes all of it away again.
set -eu

say() { printf 'edge: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }
is_true() { case $1 in true | 1 | yes) return 0 ;; *) return 1 ;; esac; }

# --- settings -------------------------------------------------------------------------------------------------------------

# What a k3s user has in the environment means the same here.
for name in $(env | sed -n 's/^\(INSTALL_\)\{0,1\}K3S_\([A-Z0-9_]*\)=.*/\1K3S_\2/p'); do
  case $name in
    INSTALL_K3S_CHANNEL | INSTALL_K3S_CHANNEL_URL | INSTALL_K3S_VERSION | INSTALL_K3S_COMMIT | INSTALL_K3S_PR | INSTALL_K3S_TYPE | \
      INSTALL_K3S_ARTIFACT_URL | INSTALL_K3S_SKIP_SELINUX_RPM | INSTALL_K3S_SELINUX_WARN | INSTALL_K3S_BIN_DIR_READ_ONLY | INSTALL_K3S_SYMLINK)
      say "$name means nothing to edge"
      continue
      ;;
  esac
  own=$(printf '%s' "$name" | sed 's/K3S/EDGE/')
  eval "theirs=\$$name"
  eval "export $own=\"\${$own-\$theirs}\""
done

bin_dir=${INSTALL_EDGE_BIN_DIR:-/usr/local/bin}
systemd_dir=${INSTALL_EDGE_SYSTEMD_DIR:-/etc/systemd/system}
bin=$bin_dir/edge

# Arguments win over INSTALL_EDGE_EXEC. Without a command it is the URL that tells an agent.
[ $# -gt 0 ] || eval "set -- ${INSTALL_EDGE_EXEC:-}"
case ${1:-} in
  server | agent) command=$1; shift ;;
  '' | -*) if [ -n "${EDGE_URL:-}" ]; then command=agent; else command=server; fi ;;
  *) fail "unknown command '$1': it is 'server' or 'agent', followed by its flags" ;;
esac
if [ "$command" = agent ]; then
  has_url=${EDGE_URL:-} has_token=${EDGE_TOKEN:-}${EDGE_TOKEN_FILE:-}
  for argument in "$@"; do
    case $argument in
      --server | --server=* | -s) has_url=yes ;;
      --token | --token=* | --token-file | --token-file=* | -t) has_token=yes ;;
    esac
  done
  if [ ! -e /etc/edge/config.yaml ]; then
    [ -n "$has_url" ] || fail "an agent needs its server: set EDGE_URL=https://SERVER:6443"
    [ -n "$has_token" ] || fail "an agent needs a token: set EDGE_TOKEN to what 'edge token create' on the server prints"
  fi
fi
name=edge
[ "$command" = server ] || name=edge-agent
[ -z "${INSTALL_EDGE_NAME:-}" ] || name=edge-${INSTALL_EDGE_NAME#edge-}
case $name in *[!a-zA-Z0-9_-]*) fail "INSTALL_EDGE_NAME: only letters, digits, '_' and '-' can be in a service's name" ;; esac

# systemd, OpenRC and the shell each read special characters in their own way.
args=$command
for argument in "$@"; do
  case $argument in
    *[!a-zA-Z0-9_./:=,@+~-]* | '') fail "'$argument' cannot be on the command line of a service: put it into /etc/edge/config.yaml" ;;
  esac
  args="$args $argument"
done

data=${EDGE_DATA_DIR:-/var/lib/edge}
previous=
for argument in "$@"; do
  case $argument in --data-dir=*) data=${argument#--data-dir=} ;; esac
  case $previous in --data-dir | -d) data=$argument ;; esac
  previous=$argument
done

# --- this machine ---------------------------------------------------------------------------------------------------------

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }
[ "$(id -u)" = 0 ] || command -v sudo >/dev/null || fail "run this as root (there is no sudo)"

[ "$(uname -s)" = Linux ] || fail "edge runs on Linux, not on $(uname -s)"
case $(uname -m) in
  x86_64 | amd64) arch=amd64 ;;
  aarch64 | arm64) arch=arm64 ;;
  *) fail "there is no edge for $(uname -m): only for x86_64 and aarch64 (a 64-bit system on Raspberry Pis)" ;;
esac
release=$(uname -r)
major=${release%%.*} rest=${release#*.}
minor=${rest%%[!0-9]*}
[ "$major" -gt 5 ] || { [ "$major" = 5 ] && [ "$minor" -ge 6 ]; } || fail "edge needs Linux 5.6 or newer, this is $release"
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
  grep -qw memory /sys/fs/cgroup/cgroup.controllers ||
    fail "the kernel's memory cgroup is off: add 'cgroup_enable=memory' to the kernel's command line (Raspberry Pi: /boot/firmware/cmdline.txt) and reboot"
elif [ ! -d /sys/fs/cgroup/memory ]; then
  fail "control groups are not mounted at /sys/fs/cgroup, or without memory: 'cgroup_enable=memory' on the kernel's command line helps on Raspberry Pis"
fi

if [ -d /run/systemd/system ] || { command -v systemctl >/dev/null && is_true "${INSTALL_EDGE_SKIP_START:-}"; }; then
  init=systemd
elif [ -x /sbin/openrc-run ]; then
  init=openrc
else
  fail "this machine has neither systemd nor OpenRC: start '$bin $args' by what it has instead"
fi

# --- the program ----------------------------------------------------------------------------------------------------------

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

fetch() {
  if command -v curl >/dev/null; then
    curl -fL --proto-default https --retry 3 -o "$2" "$1"
  elif command -v wget >/dev/null; then
    wget -O "$2" "$1"
  else
    fail "neither curl nor wget is here to download with"
  fi
}

beside=
case $0 in */install.sh | install.sh) beside=$(dirname "$0")/edge ;; esac
binary=${INSTALL_EDGE_BINARY:-}
[ -n "$binary" ] || [ -z "$beside" ] || [ ! -f "$beside" ] || binary=$beside
wanted=${INSTALL_EDGE_SHA256:-}
if is_true "${INSTALL_EDGE_SKIP_DOWNLOAD:-}" && [ -z "${INSTALL_EDGE_BINARY:-}" ]; then
  [ -x "$bin" ] || fail "INSTALL_EDGE_SKIP_DOWNLOAD is set, but there is no $bin"
  binary=$bin
elif [ -n "$binary" ]; then
  [ -f "$binary" ] || fail "$binary does not exist"
  [ -n "$wanted" ] || [ ! -f "$binary.sha256" ] || wanted=$(cut -d' ' -f1 <"$binary.sha256")
else
  from=${INSTALL_EDGE_DOWNLOAD_URL:-}
  [ -n "$from" ] || fail "where is edge? Set INSTALL_EDGE_BINARY to the program, or INSTALL_EDGE_DOWNLOAD_URL to where it can be had"
  say "downloading $from/edge-$arch"
  fetch "$from/edge-$arch" "$work/edge" || fail "$from/edge-$arch cannot be had"
  fetch "$from/edge-$arch.sha256" "$work/edge.sha256" || fail "$from/edge-$arch.sha256 cannot be had"
  binary=$work/edge
  [ -n "$wanted" ] || wanted=$(cut -d' ' -f1 <"$work/edge.sha256")
fi
found=$(sha256sum "$binary" | cut -d' ' -f1)
[ -z "$wanted" ] || [ "$wanted" = "$found" ] || fail "$binary is not what it should be: its SHA-256 is $found, not $wanted. Nothing was changed"
cp "$binary" "$work/program"
chmod 755 "$work/program"
version=$("$work/program" --version 2>/dev/null) || fail "$binary does not run on this machine ($(uname -m))"

# --- what is laid down ----------------------------------------------------------------------------------------------------

# The program brings its files along, so that one file is all that has to be carried to a machine.
files=$work/files
"$work/program" unpack "$files" || fail "$binary does not have the files that belong to it"

# A text for sed's replacement.
escape() { printf '%s' "$1" | sed 's/[\\&|]/\\&/g'; }
fill() {
  sed -e "s|@ROLE@|$command|g" -e "s|@NAME@|$name|g" -e "s|@BIN@|$(escape "$bin")|g" -e "s|@BIN_DIR@|$(escape "$bin_dir")|g" \
    -e "s|@ARGS@|$(escape "$args")|g" -e "s|@DATA@|$(escape "$data")|g" -e "s|@SYSTEMD_DIR@|$(escape "$systemd_dir")|g" "$1" >"$1.filled"
  mv "$1.filled" "$1"
}
for file in "$files/systemd/edge.service" "$files/rootfs/etc/init.d/edge" "$files"/rootfs/usr/local/bin/*.sh; do fill "$file"; done

# The environment that edge reads, in quotes that systemd and a shell read alike.
for variable in $(env | sed -n 's/^\(EDGE_[A-Z0-9_]*\)=.*/\1/p' | sort); do
  value=
  eval "value=\$$variable"
  printf '%s="%s"\n' "$variable" "$(printf '%s' "$value" | sed 's/["$`\\]/\\&/g')"
done >"$work/env"

changed=
# lay FILE TARGET MODE: puts a file into its place unless it is there already.
lay() {
  if as_root cmp -s "$1" "$2"; then
    as_root chmod "$3" "$2"
    return
  fi
  as_root mkdir -p "$(dirname "$2")"
  # beside it first, then by rename: whoever runs it, or a power cut, sees the old one or the new one
  as_root install -m "$3" "$1" "$2.new"
  as_root mv -f "$2.new" "$2"
  changed=yes
}

lay "$work/program" "$bin" 755
for script in edge-killall.sh edge-uninstall.sh; do lay "$files/rootfs/usr/local/bin/$script" "$bin_dir/$script" 755; done
lay "$work/env" "/etc/edge/$name.env" 600
service_changed=$changed
lay "$files/rootfs/etc/edge/config.yaml.example" /etc/edge/config.yaml.example 644
lay "$files/rootfs/etc/sysctl.d/90-edge.conf" /etc/sysctl.d/90-edge.conf 644
for shell in bash:/usr/share/bash-completion/completions/edge zsh:/usr/share/zsh/site-functions/_edge \
  fish:/usr/share/fish/vendor_completions.d/edge.fish; do
  target=${shell#*:}
  [ -d "$(dirname "$target")" ] || continue
  "$work/program" completion "${shell%%:*}" >"$work/completion"
  lay "$work/completion" "$target" 644
done
as_root sysctl -q -p /etc/sysctl.d/90-edge.conf || say "the limits in /etc/sysctl.d/90-edge.conf could not be set here"
if [ -d /etc/modules-load.d ]; then lay "$files/rootfs/etc/modules-load.d/edge.conf" /etc/modules-load.d/edge.conf 644; fi

changed=$service_changed
case $init in
  systemd)
    lay "$files/systemd/edge.service" "$systemd_dir/$name.service" 644
    [ -z "$changed" ] || as_root systemctl daemon-reload || is_true "${INSTALL_EDGE_SKIP_START:-}"
    ;;
  openrc) lay "$files/rootfs/etc/init.d/edge" "/etc/init.d/$name" 755 ;;
esac
say "$version is installed as the service $name ($init)"

# --- running it -----------------------------------------------------------------------------------------------------------

running() {
  case $init in
    systemd) systemctl is-active -q "$name" ;;
    openrc) rc-service "$name" status >/dev/null 2>&1 ;;
  esac
}
if is_true "${INSTALL_EDGE_SKIP_ENABLE:-}"; then exit 0; fi
case $init in
  systemd) as_root systemctl enable -q "$name" ;;
  openrc) as_root rc-update add "$name" default >/dev/null ;;
esac
if is_true "${INSTALL_EDGE_SKIP_START:-}"; then exit 0; fi
if [ -z "$changed" ] && running; then
  say "nothing has changed, and it runs"
  exit 0
fi
say "starting $name (containers that run go on running)"
case $init in
  systemd)
    as_root systemctl restart "$name" || fail "it does not start: 'journalctl -u $name' says why"
    ;;
  openrc) as_root rc-service "$name" restart || fail "it does not start: /var/log/$name.log says why" ;;
esac
if [ "$command" = server ]; then
  say "ready: export KUBECONFIG=/etc/edge/edge.yaml; kubectl get nodes"
else
  say "ready"
fi
