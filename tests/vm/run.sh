#!/usr/bin/env bash
# Runs the tests in a virtual machine that has what this one may lack: Debian's kernel 6.1 and one cgroup v2 tree with every
# controller. See README.md. Installs nothing, needs no root, and changes nothing outside of a temporary folder.
#
#   tests/vm/run.sh [ARGUMENTS FOR PYTEST]
#
# Settings, all optional: VM_KERNEL, VM_PYTHON, VM_RUN (virtme-run), VM_CPUS, VM_MEMORY, VM_PASSES, VM_TIMEOUT.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
project=$(cd "$here/../.." && pwd)

missing() {
    printf '%s\n' "$@" >&2
    exit 2
}

kernel=${VM_KERNEL:-}
if [ -z "$kernel" ]; then
    # The cloud kernels are built without 9p, through which the machine sees our files.
    kernel=$(find /boot -maxdepth 1 -name 'vmlinuz-6.1*' ! -name '*cloud*' 2>/dev/null | sort -V | tail -n 1)
fi
[ -n "$kernel" ] && [ -r "$kernel" ] || missing "There is no readable kernel 6.1 in /boot. Install one:" \
    "  sudo apt-get install linux-image-amd64          (or name an image: VM_KERNEL=/path/to/vmlinuz)"
command -v qemu-system-x86_64 >/dev/null || missing "There is no QEMU. Install it:  sudo apt-get install qemu-system-x86"
command -v busybox >/dev/null || missing "There is no static busybox. Install it:  sudo apt-get install busybox-static"
command -v modprobe >/dev/null || [ -x /sbin/modprobe ] || missing "There is no modprobe. Install it:  sudo apt-get install kmod"
virtme=${VM_RUN:-$(command -v virtme-run || true)}
[ -n "$virtme" ] || missing "There is no virtme-run. Install it:  python3 -m venv ~/.virtme && ~/.virtme/bin/pip install virtme-ng" \
    "and name it:  VM_RUN=~/.virtme/bin/virtme-run"
PATH=$(dirname "$virtme"):$PATH # it starts programs of its own from there

python=${VM_PYTHON:-$project/.venv/bin/python}
[ "${python#/}" != "$python" ] || python=$PWD/$python
[ -x "$python" ] || missing "There is no interpreter $python. Make it with  make test  or name one: VM_PYTHON=/path/to/python"
package=$(cd "$project/tests" && "$python" -c 'import os, shoal; print(os.path.dirname(shoal.__file__))') ||
    missing "$python cannot import shoal. Install it there, or set PYTHONPATH."
"$python" -c 'import hypothesis, pytest, pytest_timeout' || missing "$python lacks the test tools. Install them:  make test"
case $("$python" -c 'import sys; print(sys.prefix, sys.base_prefix)') in
    /tmp/* | /run/* | *\ /tmp/* | *\ /run/*) missing "$python lies below /tmp or /run, which are empty in the machine." ;;
esac

# A copy, so that somebody who builds or edits meanwhile does not disturb a run that takes its time.
snapshot=$(mktemp -d "${TMPDIR:-/tmp}/shoal-vm.XXXXXX")
trap 'rm -rf "$snapshot"' EXIT
chmod 755 "$snapshot"
mkdir "$snapshot/package"
cp -rL "$package" "$snapshot/package/shoal"
for part in tests examples docs pyproject.toml README.md SECURITY.md; do
    [ ! -e "$project/$part" ] || cp -r "$project/$part" "$snapshot/"
done
find "$snapshot" -name __pycache__ -type d -prune -exec rm -rf {} +
chmod -R u+w,a+rX "$snapshot"

{
    printf 'PYTHON=%q\nSNAPSHOT=%q\nPASSES=%q\nTIMEOUT=%q\n' "$python" "$snapshot" "${VM_PASSES:-root user}" "${VM_TIMEOUT:-900}"
    printf 'ARGUMENTS=('
    [ $# -eq 0 ] || printf ' %q' "$@"
    printf ' )\n'
} >"$snapshot/settings"

# Emulated: a guest kernel that is not made for the hypervisor below may hang under nested virtualisation, and this is to
# give the same result everywhere. The second file system is the same tree as the first, but one the guest may cache.
command=(
    "$virtme" --kimg "$kernel" --mods auto --disable-kvm --disable-microvm --force-9p
    --memory "${VM_MEMORY:-3G}" --cpus "${VM_CPUS:-2}"
    -q=-fsdev -q=local,id=shoal,path=/,security_model=none,readonly=on,multidevs=remap
    -q=-device -q=virtio-9p-pci,fsdev=shoal,mount_tag=shoal
    --script-sh "bash $(printf %q "$here/guest.sh") $(printf %q "$snapshot/settings") 2>&1"
)
[ -r "$here/guest.sh" ]
code=0
# Through a pipe, because QEMU writes to a file as if nobody else did.
nice -n 10 "${command[@]}" </dev/null 2>&1 | cat || code=$?
exit "$code"
