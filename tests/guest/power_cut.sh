#!/bin/sh
# Runs as root in the guest: ext4 on the kernel's NBD client, with files that are synced one after the other, until the
# machine loses its power.
#   NBD_PORT, NBD_EXPORT: the server, on the outside machine's 127.0.0.1
# Each line "SYNCED checksum name" promises a file.
. /guest/nbd_lib.sh

must modprobe nbd nbds_max=2
attach -C 2
must mkfs.ext4 -q -F $device
must mount -t ext4 $device /mnt
must mkdir $files
(while dd if=/dev/urandom of=/mnt/unsynced bs=64k count=64 status=none && rm /mnt/unsynced; do :; done) &
number=1
while :; do
    must dd if=/dev/urandom of="$files/$number" bs=$((number % 40 * 1531 + 512)) count=3 conv=fsync status=none
    echo "SYNCED $(cd $files && sha256sum "$number")"
    number=$((number + 1))
done
