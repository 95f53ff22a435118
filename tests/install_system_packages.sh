#!/usr/bin/env bash
# What the tests use beyond Python: a browser for the report, and a SLURM of one node. Installs what is missing, as root on Debian or Ubuntu.
set -euo pipefail

packages=()
command -v chromedriver >/dev/null || packages+=(chromium chromium-driver)
command -v flock >/dev/null || packages+=(util-linux)
PATH=$PATH:/usr/sbin
for program in slurmctld slurmd munge; do
    command -v "$program" >/dev/null || packages+=("$program")
done
command -v sbatch >/dev/null || packages+=(slurm-client)
[[ -e /usr/lib/$(uname -m)-linux-gnu/slurm-wlm/select_cons_tres.so ]] || packages+=(slurm-wlm-basic-plugins)
if ((${#packages[@]})); then
    echo "installing ${packages[*]}"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${packages[@]}" >/dev/null
fi
