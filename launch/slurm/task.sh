#!/bin/bash
# One task of a job: bash task.sh COMMAND...
# The command gets Slurm's SIGTERM too, saves, and leaves with 75, "start me again"; this shell waits
# for it. What leaves otherwise leaves nothing for the others to wait for: the job's script is told,
# and ends the step.
trap : TERM INT
"$@"
rc=$?
if [ "$rc" -ne 0 ] && [ "$rc" -ne 75 ] && [ "${SLURM_NTASKS:-1}" -gt 1 ]; then
  echo "Task ${SLURM_PROCID:-0} left with $rc; the others are ended." >&2
  scancel --batch --signal=USR1 "$SLURM_JOB_ID"
fi
exit "$rc"
