#!/bin/sh
# Reads SHOAL_STARTUP in a shell, with nothing but built-in commands, and says what was handed over. Try it:
#
#   python - <<'PYTHON'
#   import os, shoal
#   from shoal import *
#   shoal.spawn("examples/startup_shell.sh", ["examples/startup_shell.sh"], flags=SpawnFlags.CLONE_ALL, actions=[
#       SetName("my shell"), AddHandle(PA_HND(HandleType.USER0), File.from_fd(os.open("README.md", os.O_RDONLY)))]).wait()
#   PYTHON
#
# The format is docs/startup-format.md. A shell cannot compare descriptors with what fstat() says, so this is for
# scripts that read the table first thing, before they open anything.
set -eu

table=${SHOAL_STARTUP-}
unset SHOAL_STARTUP # what we start is not to take the table for its own
set -f              # the words hold no glob characters; this says that we know

case $table in
"") echo "nothing was handed over" && exit 0 ;;
"1" | "1 "*) ;;
*) echo "a startup table of another version" >&2 && exit 1 ;;
esac

for word in $table; do
    value=${word#*=}
    case $word in
    name=*) echo "my name is $value (percent-encoded)" ;;
    ns=*:rw) value=${value%:*} && echo "I may write below ${value%:*}" ;;
    ns=*) value=${value%:*} && echo "I may read below ${value%:*}" ;;
    handle=*)
        id=${value%%:*} rest=${value#*:}
        fd=${rest%%:*} rest=${rest#*:}
        kind=${rest%%:*}
        case $fd in "" | *[!0-9]*) continue ;; esac # only digits may reach eval
        echo "handle $id is a $kind at descriptor $fd"
        if [ "$id" = 0xf0 ] && [ "$kind" = file ]; then
            eval "read -r first <&$fd" && echo "its first line: $first"
        fi
        ;;
    esac
done
