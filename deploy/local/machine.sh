# What `up` needs of the machine: a compiler, the binaries, free ports. Sourced by it, never run.
#
# Installs what is missing with apt where it may, and says so; never installs Rust, which is not apt's to give.
# shellcheck shell=bash disable=SC2154,SC2034

# need_command COMMAND PACKAGE...: installs Debian packages if the command is not there.
need_command() {
  local command=$1
  shift
  if command -v "$command" >/dev/null; then return; fi
  command -v apt-get >/dev/null || fail "'$command' is missing: install it (Debian calls it: $*)"
  local apt=(apt-get)
  if [ "$(id -u)" != 0 ]; then
    sudo -n true 2>/dev/null || fail "'$command' is missing: sudo apt-get install $*"
    apt=(sudo -n apt-get)
  fi
  say "Installing with apt-get: $*"
  {
    "${apt[@]}" update -q && DEBIAN_FRONTEND=noninteractive "${apt[@]}" install -y -q --no-install-recommends "$@"
  } </dev/null >"$dir/apt.log" 2>&1 || {
    tail -n 10 "$dir/apt.log" >&2
    fail "apt-get could not install: $*"
  }
}

# postgres_bin: the folder of the newest PostgreSQL server's programs; nothing where there is none.
postgres_bin() {
  local folder
  for folder in $(printf '%s\n' /usr/lib/postgresql/*/bin | sort -t/ -k5 -rn); do
    if [ -x "$folder/initdb" ]; then
      echo "$folder"
      return
    fi
  done
  ! folder=$(command -v initdb) || dirname "$folder"
}

need_postgres() {
  [ -n "$(postgres_bin)" ] || need_command initdb postgresql
}

# Sets `guise` to what stands before a PostgreSQL program. It refuses to run as root: for root it runs in a user
# namespace, where root's files are those of the user postgres, or else as that user.
postgres_guise() {
  guise=()
  [ "$(id -u)" = 0 ] || return 0
  guise=(unshare --user "--map-user=$(id -u postgres)" "--map-group=$(id -g postgres)")
  if "${guise[@]}" true 2>/dev/null; then return; fi
  guise=(setpriv --reuid postgres --regid postgres --init-groups)
  chown -R postgres: "$1"
  "${guise[@]}" test -x "$1" || fail "the user postgres cannot enter $1: set VECTOR_LOCAL_DIR to a folder that it can reach"
}

# Builds the four programs. Silent when nothing has changed; one moving line on a terminal; on failure, all of it.
build_binaries() {
  need_command cc gcc libc6-dev
  # For etcd's protocol; our own needs none.
  need_command protoc protobuf-compiler
  command -v cargo >/dev/null || fail "cargo is missing: install Rust $(rust_version) or newer, for instance with rustup"
  mkdir -p "$dir/log"
  local log=$dir/log/build.log pid began=$SECONDS told=$SECONDS line
  (
    umask "$usual_umask"
    cd "$top" && CARGO_TERM_COLOR=never CARGO_TERM_PROGRESS_WHEN=always CARGO_TERM_PROGRESS_WIDTH=100 exec \
      cargo build --release --locked -p vector-edge -p vector-control -p tests --bins
  ) </dev/null >"$log" 2>&1 9>&- &
  pid=$!
  build_pid=$pid
  while kill -0 "$pid" 2>/dev/null; do
    sleep 0.1
    [ $((SECONDS - began)) -ge 1 ] || continue
    line=$(tail -c 400 "$log" | tr '\r' '\n' | grep -o 'Building.*[0-9]*/[0-9]*' | tail -n 1 | grep -o '[0-9]*/[0-9]*$' || true)
    if [ -t 1 ]; then
      printf '\r\033[KBuilding %s (%d s)' "$line" $((SECONDS - began))
    elif [ $((SECONDS - told)) -ge 30 ]; then
      told=$SECONDS
      say "Building $line ($((SECONDS - began)) s)"
    fi
  done
  [ ! -t 1 ] || printf '\r\033[K'
  build_pid=
  wait "$pid" || {
    tr '\r' '\n' <"$log" | grep -vE '^ *(Building|Compiling|Downloaded|Downloading) |^ *$' | tail -n 60 >&2
    fail "the build failed (all of it: $log)"
  }
  [ $((SECONDS - began)) -lt 2 ] || say "Built in $((SECONDS - began)) s."
}

rust_version() {
  sed -n 's/^rust-version = "\(.*\)"/\1/p' "$top/Cargo.toml"
}

check_binaries() {
  need_command curl curl ca-certificates
  local program
  for program in vector-edge vector-control vectorctl sample-provider; do
    [ -x "$bin/$program" ] || fail "$bin/$program is not there: build it, or set VECTOR_BIN_DIR"
  done
}

# Reads lines of `tcp|udp PORT NAME`; tells which ports somebody holds already, and who. Fails if any is held.
busy_ports() {
  local kind port name inode held=0
  while read -r kind port name; do
    inode=$(port_inode "$kind" "$port")
    [ -n "$inode" ] || continue
    held=1
    say "Port $port/$kind, which $name needs, is taken by $(socket_holder "$inode")." >&2
  done
  return "$held"
}

# port_inode KIND PORT: the socket that is bound there, on any address; nothing if it is free.
port_inode() {
  local hex
  hex=$(printf ':%04X' "$2")
  # Only listening sockets (0A) hold a TCP port in the way of another listener.
  cat "/proc/net/$1" "/proc/net/${1}6" 2>/dev/null |
    awk -v hex="$hex" -v kind="$1" 'substr($2, length($2) - 4) == hex && (kind == "udp" || $4 == "0A") { print $10; exit }'
}

# socket_holder INODE: the name and number of the process that has the socket, as far as we may see.
socket_holder() {
  local fd pid
  for fd in /proc/[0-9]*/fd/*; do
    if [ "$(readlink "$fd" 2>/dev/null)" = "socket:[$1]" ]; then
      pid=${fd#/proc/}
      pid=${pid%%/*}
      echo "$(cat "/proc/$pid/comm") (pid $pid)"
      return
    fi
  done
  echo "a process of another user"
}
