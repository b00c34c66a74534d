#!/bin/busybox sh
# The first process in the emulator: makes the place a usual one, runs the suite, and switches the machine off.
export PATH=/usr/sbin:/usr/bin:/bin
/bin/busybox mkdir -p /proc /sys /dev /tmp /run /usr/bin
/bin/busybox --install -s /usr/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup2 /sys/fs/cgroup
while read -r module; do
    insmod "/modules/$module.ko" || echo "cannot load $module"
done </modules/order
ip link set lo up

export SLUICE_BIN=/target/debug/sluice SLUICE_EXAMPLES=/manifests/examples RUST_BACKTRACE=0
# An emulator needs a multiple of the time that the tests grant.
export SLUICE_TEST_PATIENCE=10
set --
[ -s /filter ] && set -- "$(cat /filter)"
cd /tmp
# Longer than any suite; the machine is to end when one hangs.
timeout -s KILL 1800 /target/debug/deps/suite "$@"
poweroff -f
