#!/usr/bin/env bash
# Installs Prometheus, Alertmanager and Chromium where they are missing and this is a Debian machine
# on which we are root. Their services are not started: tests and demo start their own on free ports.
set -euo pipefail

missing=()
command -v prometheus >/dev/null && command -v promtool >/dev/null || missing+=(prometheus)
command -v prometheus-alertmanager >/dev/null || missing+=(prometheus-alertmanager)
command -v chromium >/dev/null || missing+=(chromium)
[ ${#missing[@]} -eq 0 ] && exit 0

if ! command -v apt-get >/dev/null || [ "$(id -u)" -ne 0 ]; then
  echo "missing: ${missing[*]}. As root on Debian: apt-get install ${missing[*]}" >&2
  echo "Going on without: the daemon evaluates its detectors itself, and the console shows alerts;" >&2
  echo "tests that need them are skipped." >&2
  exit 0
fi

# policy-rc.d is Debian's way to say that an installation starts no service.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
  printf '#!/bin/sh\nexit 101\n' >$policy
  chmod 755 $policy
  trap 'rm -f $policy' EXIT
fi
echo "installing ${missing[*]} with apt"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
