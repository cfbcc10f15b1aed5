# What `up` and `down` share: where a local network lives, its processes and ports, and how one is known as ours.
#
# Sourced, never run. A process is ours if its number and its start time are those that `up` noted, so a number
# that the system has given to somebody else since is left alone.
# shellcheck shell=bash disable=SC2034

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
dir=${VECTOR_LOCAL_DIR:-$top/.local}
bin=${VECTOR_BIN_DIR:-${CARGO_TARGET_DIR:-$top/target}/release}

# A second network beside the first: VECTOR_PORT_BASE=18000 puts all of it on 18000 to 18039.
base=${VECTOR_PORT_BASE:-}
if [ -n "$base" ]; then
  if ! [[ $base =~ ^[0-9]+$ ]] || [ "$base" -lt 1024 ] || [ "$base" -gt 65495 ]; then
    echo "VECTOR_PORT_BASE is '$base': give a port from 1024 to 65495" >&2
    exit 2
  fi
fi

# port DEFAULT OFFSET: the default, or the place in a shifted network.
port() {
  if [ -n "$base" ]; then echo $((base + $2)); else echo "$1"; fi
}

provider_port=$(port 8090 2)
control_port=$(port 7000 3)
console_port=$(port 7080 4)
control_admin_port=$(port 9099 20)

# Replicas of control, of which `up --replicas N` starts the first N: name, gRPC port, admin port.
controls=(
  "control   $control_port $control_admin_port"
  "control-2 $(port 7001 5) $(port 9098 26)"
  "control-3 $(port 7002 6) $(port 9097 27)"
)

# Members of the etcd cluster of `up --etcd`: name, client port, peer port.
etcd_members=(
  "etcd-1 $(port 23791 30) $(port 23801 33)"
  "etcd-2 $(port 23792 31) $(port 23802 34)"
  "etcd-3 $(port 23793 32) $(port 23803 35)"
)

# The database of `up --postgres`.
postgres_port=$(port 54329 36)

# name, roles, region, client port (or -), tunnel port, admin port
nodes=(
  "ingress-eu-1 ingress eu      $(port 8080 0) $(port 7440 10) $(port 9100 21)"
  "ingress-us-1 ingress us      $(port 8081 1) $(port 7441 11) $(port 9101 22)"
  "egress-us-1  egress  us-west -              $(port 7442 12) $(port 9102 23)"
  "egress-us-2  egress  us-east -              $(port 7443 13) $(port 9103 24)"
  "relay-us-1   relay   us      -              $(port 7444 14) $(port 9104 25)"
)

# started_at PID: when the process began, in ticks since boot; nothing if it is gone or only waits to be buried.
started_at() {
  local stat state
  { stat=$(<"/proc/$1/stat"); } 2>/dev/null || return 1
  # The name in brackets may hold spaces; what follows it does not.
  read -r state _ <<<"${stat##*) }"
  [ "$state" != Z ] && [ "$state" != X ] || return 1
  # shellcheck disable=SC2086 # the words are wanted apart
  set -- ${stat##*) }
  echo "${20}"
}

# pid_of NAME: the number of our running process of that name.
pid_of() {
  local name pid start now
  [ -f "$dir/starts" ] || return 1
  while read -r name pid start; do
    if [ "$name" = "$1" ] && now=$(started_at "$pid") && [ "$now" = "$start" ]; then
      echo "$pid"
      return 0
    fi
  done <"$dir/starts"
  return 1
}

# noted NAME: whether `up` has started a process of that name that `down` has not stopped.
noted() {
  [ -f "$dir/pids" ] && grep -q "^$1 " "$dir/pids"
}

# note NAME PID / forget NAME: keep `.local/pids` and the start times beside it.
note() {
  forget "$1"
  echo "$1 $2" >>"$dir/pids"
  echo "$1 $2 $(started_at "$2")" >>"$dir/starts"
}

forget() {
  local file
  for file in pids starts; do
    [ -f "$dir/$file" ] || continue
    grep -v "^$1 " "$dir/$file" >"$dir/$file.new" || true
    mv "$dir/$file.new" "$dir/$file"
  done
}

# stop SECONDS NAME...: asks our processes to end, waits that long for all of them, then ends them.
stop() {
  local seconds=$1 name pid until
  shift
  for name in "$@"; do
    if pid=$(pid_of "$name"); then kill -TERM "$pid" 2>/dev/null || true; fi
  done
  until=$((SECONDS + seconds))
  for name in "$@"; do
    while pid=$(pid_of "$name") && [ "$SECONDS" -lt "$until" ]; do sleep 0.02; done
    if pid=$(pid_of "$name"); then
      echo "$name (pid $pid) did not end within $seconds s: ending it by force" >&2
      kill -KILL "$pid" 2>/dev/null || true
    fi
    forget "$name"
  done
}
