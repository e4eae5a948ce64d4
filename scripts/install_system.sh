#!/bin/sh
# Installs what pip can't, where it is missing: the GL library that MuJoCo needs to render off-screen (EGL where there is a
# GPU, else OSMesa, in software), and Debian's python3-venv.
# Usage: install_system.sh PYTHON [chromium]   with it, only the browser with which the tests look at web pages
set -eu
python=$1

install() {
    echo "Installing the Debian package $1"
    if [ "$(id -u)" -eq 0 ]; then
        sudo=
    elif command -v sudo >/dev/null 2>&1; then
        sudo=sudo
    else
        echo "Neither root nor sudo: have somebody run 'apt-get install $1', then run make again" >&2
        exit 1
    fi
    $sudo apt-get update -qq
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$1" >/dev/null
}

if [ "${2:-}" = chromium ]; then
    command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null \
        || install chromium
    exit
fi

has_library() {
    /sbin/ldconfig -p | grep -q "$1"
}

if [ -e /dev/nvidia0 ] || ls /dev/dri/renderD* >/dev/null 2>&1; then
    echo "Off-screen rendering: EGL, or OSMesa where EGL has no driver"
    has_library libEGL.so.1 || install libegl1
else
    echo "Off-screen rendering: OSMesa"
fi
has_library libOSMesa.so || install libosmesa6

if ! "$python" -c "import ensurepip" 2>/dev/null; then
    install "python$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv"
fi
