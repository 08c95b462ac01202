# What a page's commands find: run by tests/docs in a network, mount and process namespace of its own.
set -eu
umask 027
export HOME=$WORK/home PATH=$WORK/bin:$PATH LC_ALL=C.UTF-8
unset XDG_STATE_HOME STATE_DIRECTORY
mkdir -p "$HOME" "$WORK/bin" "$WORK/run"

ip link set lo up
ip link add eth0 type veth peer name wire
ip address add 198.51.100.7/24 dev eth0
ip link set eth0 up
ip link set wire up
ip route add default dev eth0

cp -a /etc "$WORK/etc"
rm -rf "$WORK/etc/turnix"
mkdir "$WORK/etc/turnix"
printf '127.0.0.1 localhost\n198.51.100.7 turn.example.org turn-old.example.org\n' >"$WORK/etc/hosts"
mount --bind "$WORK/etc" /etc
systemd-sysusers "$REPOSITORY/systemd/sysusers.d/turnix.conf"

ln -s "$TURNIX" "$WORK/bin/turnix"
cat >"$WORK/bin/sudo" <<'END'
#!/bin/bash
exec "$@"
END
# The units of the package, without systemd: one server, whose log is in the background's.
cat >"$WORK/bin/systemctl" <<'END'
#!/bin/bash
export STATE_DIRECTORY=$WORK/state RUNTIME_DIRECTORY=$WORK/run
mkdir -p "$STATE_DIRECTORY"
ready() {
    for ((attempt = 0; attempt < 300; attempt++)); do
        curl --silent --fail http://127.0.0.1:9641/ready >/dev/null && exit 0
        sleep 0.1
    done
    echo "turnix is not ready" >&2
    exit 1
}
case "$*" in
"start turnix" | "enable --now turnix" | "restart turnix")
    turnix serve --takeover >>"$WORK/background" 2>&1 &
    sleep 1
    ready
    ;;
"reload turnix") turnix reload ;;
"stop turnix") pkill -TERM -x turnix ;;
"kill -s USR2 turnix") pkill -USR2 -x turnix ;;
"edit turnix") ;;
*) echo "systemctl $*: not here" >&2 && exit 1 ;;
esac
END
chmod 755 "$WORK/bin/sudo" "$WORK/bin/systemctl"
cd "$HOME"
set +e

# A command in this shell, so that what it sets holds for the next.
step() {
    set -e
    . "$WORK/command.$1" >"$WORK/step.$1" 2>&1
    set +e
    echo 0 >"$WORK/status.$1"
}
failed() {
    local code=$? number
    for number in "$WORK"/command.*; do
        number=${number##*.}
        [[ -e $WORK/status.$number ]] || [[ ! -e $WORK/step.$number ]] || echo "$code" >"$WORK/status.$number"
    done
}
trap failed EXIT
write() {
    mkdir -p "$(dirname "$2")"
    cp "$WORK/text.$1" "$2"
}
# Goes on as soon as the server is ready, or what is no server has begun.
in_background() {
    (. "$WORK/background.$1") >>"$WORK/background" 2>&1 &
    local attempt
    for ((attempt = 0; attempt < 300; attempt++)); do
        curl --silent --fail http://127.0.0.1:9641/ready >/dev/null && return
        sleep 0.1
    done
    echo 'nothing is ready'
    return 1
}
