#!/usr/bin/env bash
# What the local stack needs and Python's packages do not bring: RabbitMQ (needed) and Prometheus (welcome).
# Installed only by root and only through apt; everybody else gets one line that says what to install.
# The packages' own system services are never left running: callmesh starts private nodes of its own.
set -euo pipefail

has() { command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || [ -x "/usr/lib/rabbitmq/bin/$1" ]; }

missing=()
[ -n "${AMQP_URI:-}" ] || has rabbitmq-server || missing+=(rabbitmq-server)
has prometheus || missing+=(prometheus)
[ ${#missing[@]} -gt 0 ] || exit 0

advise() {
  for package in "${missing[@]}"; do
    case $package in
      rabbitmq-server) echo "setup: RabbitMQ is missing: install the package 'rabbitmq-server', or set AMQP_URI to a server" ;;
      prometheus) echo "setup: Prometheus is not installed: the stack runs without it" ;;
    esac
  done
}

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  advise
  exit 0
fi

# apt starts a package's service unless this file says no. Put back as it was afterwards.
policy=/usr/sbin/policy-rc.d
made_policy=
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy" && made_policy=1
fi
trap '[ -z "$made_policy" ] || rm -f "$policy"' EXIT

export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
install() {
  timeout 240 apt-get install -y -q --no-install-recommends -o DPkg::Lock::Timeout=60 "$1" >>"$log" 2>&1 </dev/null
}
echo "setup: installing ${missing[*]} with apt"
timeout 120 apt-get update -q >>"$log" 2>&1 </dev/null || true
failed=()
for package in "${missing[@]}"; do
  if install "$package"; then
    # Not at the next boot either.
    if [ -d /run/systemd/system ]; then systemctl disable "$package" >>"$log" 2>&1 || true; fi
  else
    failed+=("$package")
  fi
done
missing=("${failed[@]}")
if [ ${#missing[@]} -gt 0 ]; then
  tail -n 3 "$log"
  advise
fi
rm -f "$log"
