#!/bin/sh
# Runs as root in the guest: the kernel's NBD client with ext4 on it, first in good order, then with the server killed
# under a mounted file system.
#   NBD_PORT, NBD_EXPORT: the server, on the outside machine's 127.0.0.1
# The mark "server-killed" is where the outside kills the server and starts it again.
. /guest/nbd_lib.sh

must modprobe nbd nbds_max=2

say "attach with two connections, and what the kernel was told"
attach -C 2
queue=/sys/block/nbd0/queue
say "$(blockdev --getsize64 $device) bytes, cache $(cat $queue/write_cache), FUA $(cat $queue/fua)"
[ "$(cat $queue/write_cache)" = "write back" ] || die "the server did not offer FLUSH"
[ "$(cat $queue/fua)" = 1 ] || die "the server did not offer FUA"
[ "$(cat $queue/discard_max_bytes)" -gt 0 ] || die "the server did not offer TRIM"

say "mkfs, mount, write, sync, trim, unmount, fsck"
must mkfs.ext4 -q -F $device
must mount -t ext4 $device /mnt
must mkdir $files
write_files 1 30
must dd if=/dev/urandom of=/mnt/filler bs=1M count=8 conv=fsync status=none
must rm /mnt/filler
must fstrim /mnt
verify_files
must umount /mnt
must e2fsck -fn $device
detach

say "attach again, verify"
attach -C 2
must mount -t ext4 $device /mnt
verify_files
no_kernel_complaint

say "kill the server while a program writes"
write_files 31 40
(while dd if=/dev/urandom of=/mnt/unsynced bs=64k count=64 conv=notrunc status=none 2>/dev/null; do :; done) &
writer=$!
sleep 1
guest-mark server-killed || die "the server was not started again"
# The kernel has lost its connections: the file system fails from here on, which is what its own journal is for.
drop $writer

say "attach to the server that was started again: what was synced is there"
attach -C 2
must mount -t ext4 $device /mnt
verify_files
write_files 41 45
verify_files
must umount /mnt
must e2fsck -fn $device
no_kernel_complaint
detach
say "done"
