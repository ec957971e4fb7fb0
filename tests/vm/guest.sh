#!/usr/bin/env bash
# The part that runs in the virtual machine, as root: prepares it, runs pytest as root and as an ordinary user.
# Started by run.sh with the file of settings.
set -euo pipefail

readonly ROOT=/run/shoal-root
readonly ORDINARY_UID=65534

# --- the files --------------------------------------------------------------------------------------------------------
# The root the machine started with asks the host for every look at a file. Ours is the same tree, cached. It is entered
# with pivot_root and not chroot, in which the kernel allows no user namespaces.
if [ "${1:-}" != --inside ]; then
    # shellcheck source=/dev/null
    mkdir "$ROOT"
    mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,access=any,cache=loose,ro shoal "$ROOT"
    mkdir /run/shoal
    source "$ROOT$1"
    cp -r "$ROOT$SNAPSHOT/." /run/shoal/
    exec unshare --mount --propagation private bash /run/shoal/tests/vm/guest.sh --inside
fi

# shellcheck source=/dev/null
source /run/shoal/settings
# Some memory stands in for two disks: one to swap to, one for /tmp, since a tmpfs cannot map ids before Linux 6.3.
modprobe zram num_devices=2 2>/dev/null || true
if [ -e /sys/block/zram1 ] && command -v mkfs.ext4 >/dev/null && modprobe ext4 2>/dev/null &&
    echo 2G >/sys/block/zram1/disksize && mkfs.ext4 -q -O ^has_journal /dev/zram1; then
    mount /dev/zram1 "$ROOT/tmp"
    chmod 1777 "$ROOT/tmp"
else
    mount -t tmpfs -o mode=1777 tmpfs "$ROOT/tmp"
fi
mount --move /proc "$ROOT/proc"
mount --move /sys "$ROOT/sys"
mount --move /dev "$ROOT/dev"
mount --bind "$ROOT/tmp" "$ROOT/var/tmp"
mount -t tmpfs -o mode=755 tmpfs "$ROOT/run"
mkdir "$ROOT/run/old" "$ROOT/tmp/project"
cp -r /run/shoal/. "$ROOT/tmp/project"
cd "$ROOT"
pivot_root . run/old
exec </dev/null
cd /tmp/project
umount -l /run/old
rmdir /run/old
mount -o remount,exec,suid,dev /dev
mount -o remount,mode=1777 /dev/shm

export PYTHONPATH=/tmp/project/package CI=1 LANG=C.UTF-8 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

# The interpreter may lie in a home folder. Here nothing is lost when the way to it is opened.
prefix=$("$PYTHON" -c 'import os, sys; print(os.path.realpath(sys.base_prefix))')
closed=$prefix
while [ "$closed" != / ] && [ -n "$(find "$closed" -maxdepth 0 -perm -001)" ]; do closed=$(dirname "$closed"); done
if [ "$closed" != / ]; then
    mkdir /run/way
    mount --bind "$prefix" /run/way
    mount -t tmpfs -o mode=755 tmpfs "$closed"
    mkdir -p "$prefix"
    mount --move /run/way "$prefix"
fi

# --- the cgroups ------------------------------------------------------------------------------------------------------
# As systemd would delegate them: a group for each pass, all controllers on in it, owned by whoever runs there.
readonly TREE=/sys/fs/cgroup
mountpoint -q "$TREE" || mount -t cgroup2 cgroup2 "$TREE"
switch_on() { sed 's/[^ ]*/+&/g' "$1/cgroup.controllers" >"$1/cgroup.subtree_control"; }
switch_on "$TREE"
mkdir "$TREE/delegated"
switch_on "$TREE/delegated"

delegate() { # NAME UID
    local group=$TREE/delegated/$1
    mkdir "$group"
    chown "$2" "$group" "$group"/cgroup.{procs,threads,subtree_control}
}

if [ -e /sys/block/zram0 ]; then
    echo 256M >/sys/block/zram0/disksize
    mkswap /dev/zram0 >/dev/null
    swapon /dev/zram0
fi

# --- the tests --------------------------------------------------------------------------------------------------------
echo "== $(uname -sr), $(nproc) processors, $(cat "$TREE/cgroup.controllers")"
failed=0
run_pytest() { # NAME UID COMMAND...
    local name=$1 uid=$2 code=0
    shift 2
    delegate "$name" "$uid"
    mkdir -p "/tmp/home-$name"
    chown "$uid" "/tmp/home-$name"
    echo "== pytest as $name"
    (
        echo "$BASHPID" >"$TREE/delegated/$name/cgroup.procs"
        export HOME=/tmp/home-$name TMPDIR=/tmp/home-$name HYPOTHESIS_STORAGE_DIRECTORY=/tmp/home-$name/hypothesis
        exec "$@" "$PYTHON" -m pytest -p no:cacheprovider --timeout "$TIMEOUT" "${options[@]}" "${ARGUMENTS[@]}"
    ) || code=$?
    # 5: nothing was left after selection
    [ "$code" -eq 0 ] || [ "$code" -eq 5 ] || failed=1
    echo "== pytest as $name ended with $code"
}

[ ${#ARGUMENTS[@]} -ne 0 ] || ARGUMENTS=(tests/kernel tests/vm)
for pass in $PASSES; do
    # These would run everything once more for each module; the second pass below is the same in one go.
    options=(--ignore tests/kernel/test_as_user.py --ignore tests/escapes/test_escapes_as_user.py)
    case $pass in
        root) run_pytest root 0 ;;
        user)
            options+=(-m "not root")
            run_pytest user "$ORDINARY_UID" setpriv --reuid "$ORDINARY_UID" --regid "$ORDINARY_UID" --clear-groups --inh-caps=-all
            ;;
        *) echo "unknown pass $pass" >&2 && exit 2 ;;
    esac
done
exit "$failed"
