#!/usr/bin/env bash
# Pauses a training and resumes it with grpcurl alone: create, watch, pause, wait, resume, wait.
#
#     tour.sh 127.0.0.1:7400 [SPEC]
#
# SPEC: adjourn.v1.JobSpec as JSON. docs/integrating.md explains the parts that are marked as regions here.
set -euo pipefail
address=$1
spec=${2:-'{"entry_point": "adjourn.examples.digits:main", "total_epochs": 12, "seed": 7}'}

# region connect
call() { # METHOD REQUEST
  grpcurl -plaintext -max-time 10 -d "$2" "$address" "adjourn.v1.JobService/$1"
}

field() { # NAME; of the message itself, as grpcurl prints it
  sed -nE "s/^  \"$1\": \"?([^\",]*)\"?,?\$/\1/p"
}
# endregion

# region errors
reason() { # METHOD REQUEST; of a call that is refused
  local said
  said=$(call "$1" "$2" 2>&1) || sed -nE 's/.*"reason": ?"([A-Z_]+)".*/\1/p' <<<"$said"
}
# endregion

# region create
create() {
  local request
  request=$(printf '{"job": {"spec": %s, "labels": {"by": "shell"}}, "request_id": "%s"}' "$spec" "$(uuid)")
  call CreateJob "$request" >/dev/null
  call CreateJob "$request" | field name # as if the first answer had been lost: the same job
}

uuid() { cat /proc/sys/kernel/random/uuid; }
# endregion

# region watch
wait_for() { # STATE
  local token="" state="" line watch
  while :; do
    exec 3< <(exec grpcurl -plaintext -d "{\"names\": [\"$name\"], \"resume_token\": \"$token\"}" \
      "$address" adjourn.v1.JobService/WatchJobs)
    watch=$!
    while read -r line <&3; do
      case $line in
        '"state": '*) state=$(cut -d '"' -f 4 <<<"$line") ;;
        '"resume_token": '*) token=$(cut -d '"' -f 4 <<<"$line") ;;
      esac
      case $state in
        "$1" | SUCCEEDED | FAILED | CANCELLED) break 2 ;;
      esac
    done
    sleep 1 # the stream broke: on from the token
  done
  kill "$watch" 2>/dev/null || true
  echo "$name is $state"
  [ "$state" = "$1" ]
}
# endregion

# region etag
pause() {
  local etag
  while :; do
    etag=$(call GetJob "{\"name\": \"$name\"}" | field etag)
    case $(reason PauseJob "{\"name\": \"$name\", \"etag\": \"$etag\", \"request_id\": \"$(uuid)\"}") in
      ETAG_STALE) continue ;;
      "") return ;;
      *) return 1 ;;
    esac
  done
}
# endregion

# region pages
events() {
  local page token=""
  while :; do
    page=$(call ListJobEvents "{\"parent\": \"$name\", \"page_size\": 5, \"page_token\": \"$token\"}")
    sed -nE 's/^ +"type": "([A-Z_]+)".*/\1/p' <<<"$page"
    token=$(field next_page_token <<<"$page")
    [ -n "$token" ] || return 0
  done
}
# endregion

name=$(create)
echo "created $name"
wait_for RUNNING
pause
wait_for PAUSED
call GetJob "{\"name\": \"$name\"}" | field latest_checkpoint
call ResumeJob "{\"name\": \"$name\", \"request_id\": \"$(uuid)\"}" >/dev/null
wait_for SUCCEEDED
events
echo "a pause is refused now: $(reason PauseJob "{\"name\": \"$name\"}")"
