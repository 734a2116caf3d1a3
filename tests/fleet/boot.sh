#!/bin/sh
# Turns fresh namespaces into a running machine. Started by hosts.py as pid 1 of
#   unshare --mount --pid --uts --ipc --net --fork --kill-child
# so every mount made here ends with the host and none is ever seen outside.
#
# boot.sh DIR NAME ADDRESS/PREFIX HIDDEN [SOURCE TARGET]...
#   DIR      upper/, work/, root/ and boot_id of this host
#   HIDDEN   a directory of the machine outside that this host must not see (the checkout)
#   SOURCE TARGET  directories shared with other hosts, as an NFS mount would be
# It says "mounted", waits for "go" (the network cable is in by then), and becomes the host.
set -eu
dir=$1 name=$2 address=$3 hidden=$4
shift 4
root=$dir/root

mount -t overlay overlay -o "lowerdir=/,upperdir=$dir/upper,workdir=$dir/work" "$root"
mount -t proc proc "$root/proc"
mount --bind "$dir/boot_id" "$root/proc/sys/kernel/random/boot_id"   # a new one at each power-on, as a machine has
mount -t sysfs -o ro sysfs "$root/sys"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
mkdir "$root/dev/pts" "$root/dev/shm" "$root/run/sshd" "$root/run/lock"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$root/dev/pts"
mknod -m 666 "$root/dev/null" c 1 3
mknod -m 666 "$root/dev/zero" c 1 5
mknod -m 666 "$root/dev/full" c 1 7
mknod -m 666 "$root/dev/random" c 1 8
mknod -m 666 "$root/dev/urandom" c 1 9
mknod -m 666 "$root/dev/tty" c 5 0
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
ln -s /proc/self/fd/0 "$root/dev/stdin"
ln -s /proc/self/fd/1 "$root/dev/stdout"
ln -s /proc/self/fd/2 "$root/dev/stderr"
if [ -d "$root$hidden" ]; then mount -t tmpfs -o ro tmpfs "$root$hidden"; fi
while [ $# -ge 2 ]; do
    mount --bind "$1" "$root$2"
    shift 2
done
hostname "$name"

echo mounted
read -r _go

ip link set lo up
ip addr add "$address" dev eth0
ip link set eth0 up
exec </dev/null >>"$dir/console.log" 2>&1
# Pid 1 reaps what is orphaned (dash's wait collects any child) and outlives its sshd, as an init does.
exec chroot "$root" /bin/sh -c '
    /usr/sbin/sshd -D -e -f /etc/ssh/sshd_config &
    sleep infinity &
    while :; do wait; done
'
