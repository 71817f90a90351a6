#!/bin/bash
# The proof of proof.py between two network namespaces, joined by a cable of their own: bash two_namespaces.sh OUT.
# Needs no rights beyond those of a user namespace, and leaves nothing behind.
set -euo pipefail
if [ -z "${INSIDE:-}" ]; then
    INSIDE=1 exec unshare --user --map-root-user --net --pid --fork --mount-proc --kill-child bash "$0" "$@"
fi
out=$(realpath -m "$1")
# Names of sockets must be short.
ray=$(mktemp --directory /tmp/two-XXXX)
trap 'rm -rf "$ray"' EXIT
python=${PYTHON:-.venv/bin/python}
near=10.77.0.1 far=10.77.0.2

unshare --net sleep infinity &
other=$!
until [ "$(readlink /proc/$other/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.1; done
there() { nsenter --target $other --net "$@"; }
ip link add near type veth peer name far netns $other
ip addr add $near/24 dev near
there ip addr add $far/24 dev far
for link in lo near; do ip link set $link up; done
for link in lo far; do there ip link set $link up; done

# The head has room for the two ranks, so that the engines are on the other side of the cable.
export RAY_AUTH_MODE=disabled RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=1
start=("$python" -m ray.scripts.scripts start --num-cpus 2 --object-store-memory 100000000 --disable-usage-stats)
"${start[@]}" --head --node-ip-address $near --port 6379 --include-dashboard false --temp-dir "$ray"
there "${start[@]}" --node-ip-address $far --address $near:6379
"$python" -m tests.cluster.weights.proof "$out" $near:6379
