#!/bin/sh
# Takes edge away from this machine, with everything that it runs and has stored.
set -u
[ "$(id -u)" = 0 ] || exec sudo "$0" "$@"

bin=@BIN@
bin_dir=@BIN_DIR@
data=${EDGE_DATA_DIR:-@DATA@}

"$bin_dir/edge-killall.sh" || { echo "edge-uninstall: not everything has ended: see above. Nothing was removed" >&2; exit 1; }

# Services of this program, whatever they are called; others may have names like these, too.
# shellcheck disable=SC2013 # their names are words
for unit in $(grep -ls "^ExecStart=$bin " @SYSTEMD_DIR@/edge*.service); do
  systemctl disable "$(basename "$unit")" 2>/dev/null
  rm -f "$unit"
  systemctl reset-failed "$(basename "$unit")" 2>/dev/null
  systemctl daemon-reload
done
# shellcheck disable=SC2013 # their names are words
for script in $(grep -ls "^command=\"$bin\"" /etc/init.d/edge*); do
  rc-update --all delete "$(basename "$script")"
  rm -f "$script" "/var/log/$(basename "$script").log"
done

rm -f /etc/sysctl.d/90-edge.conf /etc/modules-load.d/edge.conf
rm -f /usr/share/bash-completion/completions/edge /usr/share/zsh/site-functions/_edge /usr/share/fish/vendor_completions.d/edge.fish
if grep -q " $data/" /proc/mounts; then
  echo "edge-uninstall: something is still mounted below $data, which stays" >&2
else
  rm -rf "$data"
fi
rm -rf /etc/edge
# Another kubelet may have its sockets there. Nobody has bound those that were edge's any more.
for socket in /var/lib/kubelet/device-plugins/kubelet.sock /var/lib/kubelet/pod-resources/kubelet.sock; do
  if [ -S "$socket" ] && ! grep -qF " $socket" /proc/net/unix; then rm -f "$socket"; fi
done
# A folder of another kubelet is not empty.
(cd /var/lib/kubelet 2>/dev/null &&
  rmdir plugins_registry device-plugins pod-resources plugins/kubernetes.io/csi plugins/kubernetes.io plugins pods 2>/dev/null)
rmdir /var/lib/kubelet 2>/dev/null
# The logs of another kubelet's pods are there, too.
[ -e /var/lib/kubelet ] || [ -e /var/lib/rancher ] || rm -rf /var/log/pods
for link in /var/log/containers/*.log; do
  if [ -L "$link" ] && [ ! -e "$link" ]; then rm -f "$link"; fi
done
rmdir /var/log/containers 2>/dev/null
rm -f "$bin" "$bin_dir/edge-killall.sh" "$bin_dir/edge-uninstall.sh"
echo "edge is gone, with everything that it has stored"
