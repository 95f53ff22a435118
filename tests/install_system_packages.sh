#!/usr/bin/env bash
# What the tests use beyond Python: a browser for the report. Installs what is missing, as root on Debian or Ubuntu.
set -euo pipefail

packages=()
command -v chromedriver >/dev/null || packages+=(chromium chromium-driver)
command -v flock >/dev/null || packages+=(util-linux)
if ((${#packages[@]})); then
    echo "installing ${packages[*]}"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${packages[@]}" >/dev/null
fi
