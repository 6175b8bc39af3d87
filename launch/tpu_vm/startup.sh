#!/bin/bash
# Written by tools/launch.py. Every host of the slice runs it as root whenever it starts: it begins
# the run, or goes on with it. The run is started again when it was asked to stop and has saved (75),
# and when a signal ended it, as jax ends a process whose peer is gone; @RESTARTS@ times at most. A
# host on which it ends otherwise says so in the bucket, and the others stop as well.
set -u
image=@IMAGE@
ended=@ENDED@
command=(@COMMAND@)
stop=/run/albert-stop  # made by whoever wants this host to rest
export HOME=/root

say() { echo "albert: $*"; }
attempt() {  # a command, until it succeeds, some times
  for _ in 1 2 3 4 5; do
    "$@" && return 0
    sleep 20
  done
  return 1
}
over=""
for_good() {  # why
  say "$1"
  over=1
  attempt gcloud storage cp - "$ended" <<< "$(hostname): $1" || say "$ended cannot be written."
}

gcloud auth configure-docker "${image%%/*}" --quiet
docker rm --force albert > /dev/null 2>&1  # of a start before this one
if ! attempt docker pull --quiet "$image"; then
  for_good "$image cannot be had."
fi
starts=0
while [ -z "$over" ] && [ ! -e "$stop" ] && ! gcloud storage ls "$ended" > /dev/null 2>&1; do
  docker run --name=albert --rm --privileged --network=host --stop-timeout=@NOTICE@ \
    --env=JAX_PLATFORMS=tpu,cpu "$image" "${command[@]}"
  rc=$?
  starts=$((starts + 1))
  say "left with $rc"
  [ -e "$stop" ] && break
  case "$rc" in
    0) for_good "The run is finished." ;;
    @AGAIN@)
      if [ "$starts" -gt @RESTARTS@ ]; then
        for_good "Started again @RESTARTS@ times, no more."
      fi ;;
    *) for_good "There is something to mend: the run left with $rc, see the log of this host." ;;
  esac
  sleep 15  # until what another host has to say is there
done
if [ -e "$stop" ]; then
  say "Stopped, as asked."
  exit 0
fi
say "Ended: $(gcloud storage cat "$ended" 2>&1)"
@DELETE@
