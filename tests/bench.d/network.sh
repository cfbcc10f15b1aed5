# What the benchmark measures: the sample provider, nginx before it, and two Vector Engine networks before it.
#
# Sourced by tests/bench, never run. Processes, ports and folders are the benchmark's own; `network.sh` of
# deploy/local knows them again by number and start time.
# shellcheck shell=bash disable=SC2154

# How long a process may take to be ready.
ready_seconds_max=20

provider_listen=127.0.0.1:$port_base
nginx_port=$((port_base + 1))
tls_provider_port=$((port_base + 2))

# arm, its control's port and admin port
networks=(
  "all  $((port_base + 3)) $((port_base + 20))"
  "pair $((port_base + 4)) $((port_base + 21))"
)

# arm, node, roles, client port (or -), tunnel port, admin port
edges=(
  "all  node    ingress,relay,egress $((port_base + 5)) $((port_base + 10)) $((port_base + 22))"
  "pair ingress ingress              $((port_base + 6)) $((port_base + 11)) $((port_base + 23))"
  "pair egress  egress               -                  $((port_base + 12)) $((port_base + 24))"
)

# Models that the benchmark asks for; a network knows them by name, as in real use.
models=(bench bench-stream-20 bench-stream-1000x20)

# launch NAME PROGRAM ARGUMENT...: one process, known as ours.
launch() {
  local name=$1
  shift
  (
    # shellcheck disable=SC2086 # the names are wanted apart
    unset ${!VECTOR_@} ${!OPENAI_@}
    exec setsid "$@" </dev/null >"$dir/log/$name.log" 2>&1
  ) &
  note "$name" $!
}

# wait_for NAME URL: until it answers 200.
wait_for() {
  local until=$((SECONDS + ready_seconds_max)) code=none
  while [ "$SECONDS" -lt "$until" ]; do
    pid_of "$1" >/dev/null || fail "$1 has ended" "$1"
    code=$(curl -s -o /dev/null -w '%{http_code}' --max-time 2 "${@:3}" "$2" || true)
    [ "$code" != 200 ] || return 0
    sleep 0.02
  done
  fail "$1 is not ready after $ready_seconds_max s ($2 answers $code)" "$1"
}

write_nginx_conf() {
  cat >"$dir/nginx.conf" <<CONF
worker_processes $nginx_workers;
worker_rlimit_nofile 16384;
daemon off;
pid $dir/nginx.pid;
error_log stderr warn;
events {
  worker_connections 8192;
}
http {
  access_log off;
  keepalive_requests 1000000000;
  keepalive_timeout 1h;
  client_max_body_size 0;
  client_body_temp_path $dir/nginx-body;
  proxy_temp_path $dir/nginx-proxy;
  fastcgi_temp_path $dir/nginx-fastcgi;
  uwsgi_temp_path $dir/nginx-uwsgi;
  scgi_temp_path $dir/nginx-scgi;
  upstream provider {
    server $provider_listen;
    keepalive 1024;
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
  }
  server {
    listen 127.0.0.1:$nginx_port backlog=4096 reuseport;
    location / {
      proxy_pass http://provider;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_request_buffering off;
    }
  }
}
CONF
}

start_peers() {
  launch provider "$bin/sample-provider" --listen "$provider_listen" --first-ms 0 --token-ms 0 --task-ms 0
  wait_for provider "http://$provider_listen/"
  # As the real ones are: HTTPS, and HTTP/2 by ALPN.
  "$bin/load" wan certificate --dir "$dir" localhost || fail "no certificate for the provider"
  launch tls-provider "$bin/sample-provider" --listen "127.0.0.1:$tls_provider_port" --first-ms 0 --token-ms 0 \
    --task-ms 0 --tls-cert "$dir/cert.pem" --tls-key "$dir/key.pem"
  wait_for tls-provider "https://localhost:$tls_provider_port/" --cacert "$dir/cert.pem"
  if wanted nginx; then
    write_nginx_conf
    launch nginx "$(command -v nginx || echo /usr/sbin/nginx)" -p "$dir" -c "$dir/nginx.conf"
    wait_for nginx "http://127.0.0.1:$nginx_port/"
  fi
}

# Control of one network: its settings, its process, its routes, a key for the clients.
start_control() {
  local arm=$1 port=$2 admin=$3
  mkdir -p "$dir/$arm/invite"
  cat >"$dir/$arm/control.toml" <<TOML
[control]
listen = "127.0.0.1:$port"
names = ["localhost", "127.0.0.1"]
data_dir = "$dir/$arm/control"
admin_token_file = "$dir/$arm/admin.token"
rollout_pause_ms = 0

[admin]
listen = "127.0.0.1:$admin"
TOML
  launch "$arm-control" "$bin/vector-control" --config "$dir/$arm/control.toml"
  wait_for "$arm-control" "http://127.0.0.1:$admin/readyz"
  write_routes >"$dir/$arm/network.toml"
  ctl "$arm" apply -f "$dir/$arm/network.toml" >"$dir/log/$arm-apply.log" 2>&1 || fail "the routes were refused" "$arm-apply"
  ctl "$arm" --json key create --account bench --name bench >"$dir/$arm/key.json" 2>"$dir/log/$arm-key.log" ||
    fail "control made no key" "$arm-key"
  grep -o 'sk-[A-Za-z0-9_-]*' "$dir/$arm/key.json" | head -n 1 >"$dir/$arm/key" || fail "control showed no key"
}

ctl() {
  local arm=$1 row name port admin
  shift
  for row in "${networks[@]}"; do
    # shellcheck disable=SC2034 # a row is read whole
    read -r name port admin <<<"$row"
    [ "$name" != "$arm" ] || break
  done
  VECTOR_CONTROL=https://127.0.0.1:$port VECTOR_ADMIN_TOKEN=$(<"$dir/$arm/admin.token") "$bin/vectorctl" "$@"
}

write_routes() {
  local model
  cat <<TOML
[[provider]]
name = "sample"
kind = "openai"
base_url = "http://$provider_listen/v1"
allow_private = true

[[credential]]
name = "sample-1"
provider = "sample"
secret = "sample-key"

[[provider]]
name = "sample-tls"
kind = "openai"
base_url = "https://localhost:$tls_provider_port/v1"
allow_private = true

[[credential]]
name = "sample-tls-1"
provider = "sample-tls"
secret = "sample-key"

[[default_route]]
operation = "*"
upstreams = [{ provider = "sample" }]

[[account]]
name = "bench"
title = "Benchmark"
TOML
  for model in "${models[@]}" "bench-stream-${stream_chunks}x$stream_gap_ms"; do
    cat <<TOML

[[model]]
name = "$model"
upstreams = [{ provider = "sample", model = "$model" }]

[[model]]
name = "tls-$model"
upstreams = [{ provider = "sample-tls", model = "$model" }]
TOML
  done
}

# control_of ARM: its control's port.
control_of() {
  local row name port admin
  for row in "${networks[@]}"; do
    read -r name port admin <<<"$row"
    if [ "$name" = "$1" ]; then echo "$port"; fi
  done
}

write_node_conf() {
  local arm=$1 name=$2 roles=$3 client=$4 tunnel=$5 admin=$6
  cat >"$dir/$arm/$name.toml" <<TOML
[node]
id = "bench-$arm-$name"
region = "eu"
roles = ["${roles//,/\", \"}"]
state_dir = "$dir/$arm/$name"

[control]
url = "https://127.0.0.1:$(control_of "$arm")"
invite_file = "$dir/$arm/invite/$name"

[tunnel]
listen = ["127.0.0.1:$tunnel"]

[admin]
listen = "127.0.0.1:$admin"
TOML
  [ "$client" = - ] || cat >>"$dir/$arm/$name.toml" <<TOML

[ingress]
listen = "127.0.0.1:$client"
url = "http://127.0.0.1:$client"
TOML
  [[ ,$roles, != *,egress,* ]] || printf '\n[egress]\ntls_roots = "%s"\n' "$dir/cert.pem" >>"$dir/$arm/$name.toml"
}

# Starts the nodes of one network, new or again, and waits until a request through it succeeds.
start_nodes() {
  local row arm name roles client tunnel admin role arguments=() door=
  for row in "${edges[@]}"; do
    read -r arm name roles client tunnel admin <<<"$row"
    [ "$arm" = "$1" ] || continue
    if [ ! -s "$dir/$arm/$name/identity.pem" ]; then
      write_node_conf "$arm" "$name" "$roles" "$client" "$tunnel" "$admin"
      arguments=()
      for role in ${roles//,/ }; do arguments+=(--role "$role"); done
      ctl "$arm" --json node invite --node "bench-$arm-$name" --region eu "${arguments[@]}" 2>"$dir/log/$arm-invite.log" |
        grep -o 'vinv_[A-Za-z0-9._-]*' >"$dir/$arm/invite/$name" || fail "control gave no invitation" "$arm-invite"
    fi
    launch "$arm-$name" "$bin/vector-edge" --config "$dir/$arm/$name.toml"
    [ "$client" = - ] || door=$client
  done
  for row in "${edges[@]}"; do
    read -r arm name roles client tunnel admin <<<"$row"
    [ "$arm" != "$1" ] || wait_for "$arm-$name" "http://127.0.0.1:$admin/readyz"
  done
  for row in "${edges[@]}"; do
    read -r arm name roles client tunnel admin <<<"$row"
    if [ "$arm" != "$1" ] || [ "$client" = - ]; then continue; fi
    wait_for "$arm-$name" "http://127.0.0.1:$door/v1/chat/completions" -H "Authorization: Bearer $(<"$dir/$arm/key")" \
      -H 'Content-Type: application/json' -d '{"model":"bench","messages":[{"role":"user","content":"ping"}]}'
  done
}

# Fresh processes, so that memory is that of what comes, not of what was.
restart() {
  case "$1" in
    nginx)
      stop 5 nginx
      launch nginx "$(command -v nginx || echo /usr/sbin/nginx)" -p "$dir" -c "$dir/nginx.conf"
      wait_for nginx "http://127.0.0.1:$nginx_port/"
      ;;
    all) stop 10 all-node ;;
    pair) stop 10 pair-ingress pair-egress ;;
  esac
  case "$1" in all | pair) start_nodes "$1" ;; esac
}

# url_of ARM / key_of ARM / pids_of ARM: where it is asked, as whom, and which processes it costs.
url_of() {
  case "$1" in
    direct) echo "http://$provider_listen" ;;
    nginx) echo "http://127.0.0.1:$nginx_port" ;;
    all) echo "http://127.0.0.1:$((port_base + 5))" ;;
    pair) echo "http://127.0.0.1:$((port_base + 6))" ;;
  esac
}

key_of() {
  case "$1" in
    all | pair) cat "$dir/$1/key" ;;
    *) echo sample-key ;;
  esac
}

pids_of() {
  local pid at=0
  case "$1" in
    nginx)
      for pid in $(pgrep -P "$(pid_of nginx)"); do
        at=$((at + 1))
        printf 'nginx-%s=%s,' "$at" "$pid"
      done
      ;;
    all) printf 'node=%s,control=%s' "$(pid_of all-node)" "$(pid_of all-control)" ;;
    pair)
      printf 'ingress=%s,egress=%s,control=%s' "$(pid_of pair-ingress)" "$(pid_of pair-egress)" "$(pid_of pair-control)"
      ;;
  esac
}

# Names whoever holds one of our ports.
check_ports() {
  local at
  for at in 0 1 2 3 4 5 6 20 21 22 23 24; do echo "tcp $((port_base + at)) benchmark"; done >"$dir/ports"
  for at in 10 11 12; do echo "udp $((port_base + at)) benchmark"; done >>"$dir/ports"
  busy_ports <"$dir/ports" || fail "a port is taken: free it, or set VECTOR_BENCH_PORT_BASE"
}
