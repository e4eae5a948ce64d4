#!/bin/sh
# Installs the GL library that MuJoCo needs to render off-screen: EGL where there is a GPU, else OSMesa (software).
set -eu

has_library() {
    /sbin/ldconfig -p 2>/dev/null | grep -q "$1"
}

if [ -e /dev/nvidia0 ] || ls /dev/dri/renderD* >/dev/null 2>&1; then
    name=EGL library=libEGL.so.1 package=libegl1
else
    name=OSMesa library=libOSMesa.so package=libosmesa6
fi
if has_library "$library"; then
    echo "Off-screen rendering: $name ($library is installed)"
    exit 0
fi
echo "Off-screen rendering: $name (installing the Debian package $package)"
if [ "$(id -u)" -eq 0 ]; then
    sudo=
elif command -v sudo >/dev/null 2>&1; then
    sudo=sudo
else
    echo "Neither root nor sudo: ask for 'apt-get install $package', then run make again" >&2
    exit 1
fi
$sudo apt-get update -qq
DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends "$package" >/dev/null
