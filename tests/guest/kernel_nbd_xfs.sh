#!/bin/sh
# Runs as root in the guest: the kernel's NBD client with xfs on four connections, through a kill of the server, and a
# disconnect in the middle of writes.
#   NBD_PORT, NBD_EXPORT: the server, on the outside machine's 127.0.0.1
# At the mark "server-killed" the outside kills the server and starts it again; at the mark "disconnected" it looks at
# what the server knows.
. /guest/nbd_lib.sh

must modprobe nbd nbds_max=2

say "attach with four connections"
attach -C 4
say "$(blockdev --getsize64 $device) bytes, $(ls /sys/block/nbd0/mq | wc -l) queues"

say "mkfs, mount, write, sync, trim"
must mkfs.xfs -q -f $device
must mount -t xfs $device /mnt
must mkdir $files
write_files 1 25
must fstrim /mnt
verify_files

say "kill the server while a program writes"
(while dd if=/dev/urandom of=/mnt/unsynced bs=64k count=64 conv=notrunc status=none 2>/dev/null; do :; done) &
writer=$!
sleep 1
guest-mark server-killed || die "the server was not started again"
# The kernel has lost its connections: the file system fails from here on, which is what its own journal is for.
drop $writer

say "attach again: what was synced is there"
attach -C 4
must mount -t xfs $device /mnt
verify_files
write_files 26 40
verify_files
must umount /mnt
must xfs_repair -n $device
no_kernel_complaint
detach

say "disconnect in the middle of writes"
attach -C 4
must blkdiscard -z -o 0 -l 64M $device
(dd if=/dev/zero bs=1M count=64 | tr '\0' Z | dd of=$device bs=1M oflag=direct iflag=fullblock status=none) 2>/dev/null &
writer=$!
must guest-wait 20 sh -c "[ \$(cut -c1-1000 /sys/block/nbd0/stat | awk '{print \$5}') -gt 5 ]"
must nbd-client -d $device
wait $writer
must guest-wait 20 sh -c "! nbd-client -c $device"
guest-mark disconnected || die "the server did not take the disconnect well"

say "attach again: every block is as it was or as it was written"
attach -C 4
must dd if=$device of=/tmp/after bs=1M count=64 iflag=direct status=none
written=$(tr -dc Z </tmp/after | wc -c)
say "$written bytes were written before the disconnect"
[ "$written" -gt 0 ] || die "nothing was written"
[ $((written % 4096)) = 0 ] || die "a block was written in part"
[ "$(tr -d 'Z\0' </tmp/after | wc -c)" = 0 ] || die "there is what nobody wrote"
detach
say "done"
