#!/bin/bash
# Runs commands one after the other: bash stages.sh 'COMMAND' ['COMMAND' ...]
# The one that runs gets this shell's SIGTERM, saves, and leaves with 75; what does not leave with 0
# ends all, with its code.
set -u
asked=""
child=""
pass_on() {
  asked=1
  [ -z "$child" ] || kill -TERM "$child" 2>/dev/null
}
trap pass_on TERM INT
for command in "$@"; do
  [ -z "$asked" ] || exit 75
  bash -c "exec $command" &
  child=$!
  wait "$child"
  rc=$?
  while [ "$rc" -gt 128 ] && kill -0 "$child" 2>/dev/null; do  # it was the wait that was ended
    wait "$child"
    rc=$?
  done
  [ "$rc" -eq 0 ] || exit "$rc"
done
