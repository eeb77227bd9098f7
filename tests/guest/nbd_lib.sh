# What the guest's NBD scripts share; NBD_PORT and NBD_EXPORT name the server, on the outside machine's 127.0.0.1.
device=/dev/nbd0
files=/mnt/files

say() { echo "== $*"; }
die() {
    echo "FAILED: $*"
    exit 1
}
# must COMMAND...: silent unless it fails.
must() { "$@" >/tmp/output 2>&1 || { cat /tmp/output; die "$*"; }; }

# attach OPTION...: options of nbd-client.
attach() {
    must nbd-client -N "$NBD_EXPORT" "$@" "$HOST_IP" "$NBD_PORT" $device
    must guest-wait 20 sh -c "[ \$(blockdev --getsize64 $device) -gt 0 ]"
}
detach() {
    must nbd-client -d $device
    must guest-wait 20 sh -c "! nbd-client -c $device"
}
# write_files FIRST LAST: files of many sizes, each synced; their checksums stay in the guest's memory.
write_files() {
    number=$1
    while [ "$number" -le "$2" ]; do
        must dd if=/dev/urandom of="$files/$number" bs=$((number * 1531)) count=3 conv=fsync status=none
        (cd $files && sha256sum "$number") >>/tmp/checksums || die "checksum of file $number"
        number=$((number + 1))
    done
}
# verify_files: from the device, since the kernel's cache is dropped first.
verify_files() {
    echo 3 >/proc/sys/vm/drop_caches
    (cd $files && sha256sum --check --quiet /tmp/checksums) || die "files differ from what was written"
    say "$(wc -l </tmp/checksums) files are as they were written"
}
no_kernel_complaint() {
    ! dmesg | grep -E 'I/O error|EXT4-fs (error|warning)|XFS .*(error|shut|orrupt)|nbd0: .*(timed out|error)' || die "the kernel complained"
}
# drop WRITER: end the program with this process id, and let go of a device and file system that have lost their server.
drop() {
    kill "$1" 2>/dev/null
    wait "$1" 2>/dev/null
    umount /mnt 2>/dev/null || umount -l /mnt
    nbd-client -d $device >/dev/null 2>&1
    must guest-wait 20 sh -c "! nbd-client -c $device"
    dmesg --clear 2>/dev/null || dmesg -c >/dev/null
}
