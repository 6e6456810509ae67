#!/usr/bin/env bash
#
# Demo of the service in less than half a minute: a repository, a virtual machine, a full and an
# incremental backup, and a check that the copy equals the snapshot.
#
#     demo.sh PATH-TO-BINARY
#     demo.sh --check          only check whether it can run here
#
# It needs root, for loop mounts. It uses only 127.0.0.1 and $TMPDIR, and removes everything it
# creates. It runs in its own mount namespace, unlinks its images as soon as they are mounted, and its
# servers end with it. Even after a SIGKILL only a folder of small files remains.
#
# With KEEP=1 it leaves the service running, and a process that cleans up when it is stopped.

set -euo pipefail
export LC_ALL=C
umask 077

readonly disk_size=$((1 << 30)) guest_file=$((6 << 20)) guest_archive=$((28 << 20))
readonly patience=15 # seconds, for a server to start or to stop

die() {
    printf 'demo: %s\n' "$*" >&2
    exit 1
}

[[ $EUID -eq 0 ]] || die 'run it as root: it mounts loop devices'
unshare --mount --propagation slave true 2>/dev/null ||
    die 'no mount namespace can be made here, as in a container without CAP_SYS_ADMIN: run it on a host or in a VM'
[[ -e /dev/loop-control ]] || modprobe loop 2>/dev/null || die 'no loop devices: load the kernel module loop'
[[ ${1:-} != --check ]] || exit 0
[[ $# -eq 1 && -x $1 && -f $1 ]] || die "usage: ${0##*/} PATH-TO-BINARY"
binary=$(realpath -- "$1")
here=$(dirname -- "$(realpath -- "${BASH_SOURCE[0]}")")
for tool in mkfs.xfs mkfs.ext4 e2fsck fstrim losetup unshare setpriv curl jq openssl python3; do
    command -v "$tool" >/dev/null || die "$tool is missing: install xfsprogs e2fsprogs util-linux curl jq openssl python3"
done

python3 -c 'import requests' 2>/dev/null || die 'python3 has no module requests: install python3-requests'

# In its own mount namespace, only the demo's processes see its mounts, and the mounts end with the last of them.
# Unmounts on the host apply here too.
mounts_seen_by_all=${DEMO_MOUNT_NAMESPACE:-$(readlink /proc/self/ns/mnt)}
if [[ $mounts_seen_by_all == "$(readlink /proc/self/ns/mnt)" ]]; then
    export DEMO_MOUNT_NAMESPACE=$mounts_seen_by_all
    exec unshare --mount --propagation slave -- "$BASH" "$here/${BASH_SOURCE[0]##*/}" "$binary"
fi

# --- Cleanup

work='' signalled='' mounted=() children=() logs=()

# cleanup: runs once, at every exit. Continues after a failure, and reports it.
cleanup() {
    local status=$? left=() log mount pid
    status=${signalled:-$status} # bash forgets an exit status given while it expands a word
    trap - EXIT
    trap '' HUP INT TERM PIPE
    set +e
    if ((status != 0 && status < 128)); then
        for log in "${logs[@]}"; do
            [[ -s $log ]] && printf -- '--- the end of %s\n' "${log##*/}" && tail -n 20 -- "$log"
        done >&2
    fi
    for pid in "${children[@]}"; do stop "$pid"; done
    while ((${#mounted[@]})); do
        mount=${mounted[-1]}
        unset 'mounted[-1]'
        dismount "$mount" || left+=("the mount of $mount")
    done
    if [[ -n $work ]]; then
        eventually no_loop_device "$work/" || left+=("loop devices of $work")
        rm -rf --one-file-system -- "$work" || left+=("$work")
    fi
    if ((${#left[@]})); then
        printf 'demo: could not clean up: %s\n' "${left[@]}" >&2
        ((status)) || status=1
    fi
    exit "$status"
}
trap cleanup EXIT
trap 'signalled=129; exit' HUP
trap 'signalled=130; exit' INT
trap 'signalled=143; exit' TERM

# eventually COMMAND...: repeats it for up to five seconds, until it succeeds.
eventually() {
    local tries
    for ((tries = 0; tries < 50; tries++)); do
        "$@" && return 0 # 0 is required: in a trap, the default is the status before the trap
        sleep 0.1
    done
    return 1
}

not_running() { ! kill -0 "$1" 2>/dev/null; }

no_loop_device() { ! losetup --list --noheadings --output BACK-FILE | grep -qF -- "$1"; }

unmounted() { ! mountpoint -q -- "$1" || umount -- "$1" 2>/dev/null; }

# stop PID: ends a child process, with SIGTERM first.
stop() {
    kill -TERM "$1" 2>/dev/null
    eventually not_running "$1" || kill -KILL "$1" 2>/dev/null
    wait "$1" 2>/dev/null
}

# dismount FOLDER: unmounts it and its loop device. Retries, because other programs may scan a new mount.
dismount() { eventually unmounted "$1"; }

# mount_image IMAGE FOLDER [OPTION]
mount_image() {
    mkdir -p -- "$2"
    mounted+=("$2")
    mount -o "loop${3:+,$3}" -- "$1" "$2"
}

# storage FOLDER SIZE: mounts a new XFS there. Its image is unlinked, so that it disappears with the mount.
storage() {
    truncate -s "$2" -- "$work/image"
    mkfs.xfs -q -m reflink=1 -- "$work/image"
    mount_image "$work/image" "$1"
    rm -- "$work/image"
}

# start NAME COMMAND...: starts a server in the background. It dies with this script, except with KEEP.
start() {
    local log=$work/$1.log
    shift
    logs+=("$log")
    local with=(setpriv --pdeathsig KILL)
    [[ -z ${KEEP:-} ]] || with=(setsid)
    "${with[@]}" -- "$@" </dev/null >"$log" 2>&1 3>&- &
    children+=("$!")
}

# wait_for NAME COMMAND...: waits until the command succeeds, while the server started last runs.
wait_for() {
    local name=$1 end=$((SECONDS + patience))
    shift
    until "$@"; do
        not_running "${children[-1]}" && die "the $name ended before it was ready"
        ((SECONDS < end)) || die "the $name was not ready within $patience seconds"
        sleep 0.1
    done
}

# --- Output

exec 3>&1 # the terminal, even when stdout is captured
steps=0 token='' snapshot=''

step() { printf '%2d. %s\n' $((++steps)) "$*"; }
note() { printf '      %s\n' "$*"; }
bytes() { numfmt --to=iec-i --suffix=B --format=%.1f "$1"; }

# run COMMAND...: prints the command, with short names for long values, and runs it.
run() {
    local shown='' word
    for word in "$@"; do
        [[ $word == *' '* ]] && word="'$word'"
        [[ -n $token ]] && word=${word//"$token"/"${token:0:12}..."}
        [[ -n $snapshot ]] && word=${word//"$snapshot"/"\$SNAPSHOT"}
        word=${word//"$binary"/coriolis-ovm-exporter}
        word=${word//"$api"/"\$API"} word=${word//"${api%/api/v1}"/"\$URL"}
        word=${word//"$vm"/"\$VM"} word=${word//"$work/"/} word=${word//"$here/../"/}
        shown+=" ${word//"$disk_name"/"\$DISK"}"
    done
    printf '      $%s\n' "$shown" >&3
    setpriv --pdeathsig KILL -- "$@"
}

# ask [CURL-OPTION...] URL: calls the service, with the token if there is one.
ask() {
    run curl -sS --fail --max-time 60 --cacert "$work/ca.pem" ${token:+-H "Authorization: Bearer $token"} "$@"
}

# client COMMAND...: the backup client, in the same binary.
client() { EXPORTER_TOKEN=$token EXPORTER_CACERT=$work/ca.pem HOME=$work run "$binary" "$@"; }

# --- Helpers

random_hex() { od -An -v -N"$1" -tx1 /dev/urandom | tr -d ' \n'; }
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
sum_of() { openssl dgst -sha256 -r "$1" | cut -d ' ' -f 1; } # up to four times as fast as sha256sum

# authority: creates a CA, in ca.pem and ca.key.
authority() {
    openssl req -x509 -config /dev/stdin -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 \
        -keyout "$work/ca.key" -out "$work/ca.pem" 2>"$work/openssl.log" <<'END' || die "openssl: $(<"$work/openssl.log")"
[req]
prompt = no
distinguished_name = name
x509_extensions = extensions
[name]
CN = demo authority
[extensions]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
END
}

# certificate NAME: creates a server certificate for this host, signed by the CA, in NAME.pem and NAME.key.
certificate() {
    {
        openssl req -config /dev/stdin -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes \
            -keyout "$work/$1.key" -out "$work/$1.csr" <<END &&
[req]
prompt = no
distinguished_name = name
[name]
CN = demo $1
END
            openssl x509 -req -in "$work/$1.csr" -CA "$work/ca.pem" -CAkey "$work/ca.key" \
                -set_serial "0x$(random_hex 8)" -days 2 -out "$work/$1.pem" -extfile /dev/stdin <<'END'
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectAltName = IP:127.0.0.1, DNS:localhost
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
END
    } 2>"$work/openssl.log" || die "openssl: $(<"$work/openssl.log")"
    # The service refuses a key that others may read.
    chmod 0600 "$work/$1.key"
}

# guest_boots, guest_halts: mount and unmount the guest's file system, as the guest would.
guest_boots() { mount_image "$disk" "$work/guest"; }
guest_halts() {
    (cd "$work/guest" && find . -type f -exec sha256sum {} +) >"$work/guest.sha256"
    dismount "$work/guest" || die 'the guest does not halt: its file system is still mounted'
    eventually no_loop_device "$disk" || die 'the guest does not release its disk'
}

# backup: makes a restore point, restores it, and compares it with the snapshot.
backup() {
    local original restored expected
    client backup "${api%/api/v1}" web-1 --to "$work/backup/points" --progress none --json >"$work/summary.json"
    original=$(curl -sS --fail --max-time 60 --cacert "$work/ca.pem" -H "Authorization: Bearer $token" \
        "$api/vms/$vm/snapshots/$(summary snapshot_id)?chunks=false" | jq -er '.disks[0].path')
    rm -rf -- "$work/backup/restored"
    client restore "$work/backup/points" web-1 --out "$work/backup/restored" -q
    expected=$(sum_of "$original")
    restored=$(sum_of "$work/backup/restored/$disk_name")
    [[ $restored == "$expected" ]] || die "the restored disk's SHA-256 is $restored, the snapshot's $expected"
    note "SHA-256 of the snapshot in the repository equals that of the restored disk: ${expected:0:12}..."
}

summary() { jq -r ".vms[0].$1" "$work/summary.json"; }
seconds() { printf '%.2f' "$(summary seconds)"; }

# --- KEEP=1

# keep_running: waits until it is stopped or a server ends; then cleanup runs.
keep_running() {
    local pid
    trap '' HUP
    work=$DEMO_WORK
    mapfile -t mounted <<<"$DEMO_MOUNTED"
    mapfile -t children <<<"$DEMO_CHILDREN"
    : >"$work/kept"
    while :; do
        for pid in "${children[@]}"; do not_running "$pid" && exit; done
        sleep 1 &
        wait "$!"
    done
}

# hand_over: leaves the servers and mounts to that process, and prints commands to try.
hand_over() {
    local IFS=$'\n' keeper sudo=''
    DEMO_WORK=$work DEMO_MOUNTED="${mounted[*]}" DEMO_CHILDREN="${children[*]}" \
        setsid -- "$BASH" "$here/${BASH_SOURCE[0]##*/}" "$binary" </dev/null >"$work/keeper.log" 2>&1 3>&- &
    keeper=$!
    eventually test -e "$work/kept" || die 'the process that keeps the demo running does not start'
    trap - EXIT HUP INT TERM
    chmod 0755 "$work"
    chmod 0644 "$work/ca.pem"
    [[ -z ${SUDO_USER:-} ]] || sudo='sudo '
    cat <<END

The service is running. Try:

    export EXPORTER=${api%/api/v1} CURL_CA_BUNDLE=$work/ca.pem VM=$vm
    TOKEN=\$(curl -sS \$EXPORTER/api/v1/auth/login -d '{"username": "$user", "password": "$password"}' | jq -r .token)
    get() { curl -sS --fail-with-body -H "Authorization: Bearer \$TOKEN" "\$@"; }
    get \$EXPORTER/api/v1/vms/\$VM | jq
    get -X POST \$EXPORTER/api/v1/vms/\$VM/snapshots | jq '.disks[] | {name, size, data_bytes}'
    get -H "Accept: text/plain" "\$EXPORTER/api/v1/status?cost=true"
    export EXPORTER_USERNAME=$user EXPORTER_PASSWORD=$password EXPORTER_CACERT=\$CURL_CA_BUNDLE
    $binary backup \$EXPORTER --all --to \$(mktemp -d)

Only the demo sees the repository. To open a shell that sees it: ${sudo}nsenter -t $keeper -m bash
The disk of the VM: $disk
The log of the service: $work/service.log

To stop the service and remove everything: ${sudo}kill $keeper
END
    exit 0
}

[[ -z ${DEMO_WORK:-} ]] || keep_running

# --- The demo

work=$(realpath -- "$(mktemp -d "${TMPDIR:-/tmp}/exporter-demo.XXXXXX")")
[[ $work =~ ^[A-Za-z0-9/._-]+$ ]] || die "TMPDIR may have only letters, digits and ./_-: vm.cfg cannot quote other characters"
(($(df --output=avail -B1 -- "$work" | tail -n 1) > 512 << 20)) || die "less than 512 MiB free in ${work%/*}"

repository=$work/0004fb0000030000$(random_hex 8)
vm=0004fb0000060000$(random_hex 8)
disk_name=0004fb0000120000$(random_hex 8).img
disk=$repository/VirtualDisks/$disk_name
user=demo password=$(random_hex 12)

step 'A repository: XFS with reflinks'
storage "$repository" 4G
storage "$work/backup" 2G
mkdir -p "$repository"/{VirtualDisks,ISOs,Templates,Assemblies} "$repository/VirtualMachines/$vm"

truncate -s "$disk_size" -- "$disk"
mkfs.ext4 -q -F -E lazy_itable_init=0,lazy_journal_init=0 -- "$disk" # otherwise the guest writes them later
guest_boots
for file in document-{01..12}; do head -c "$guest_file" /dev/urandom >"$work/guest/$file"; done
head -c "$guest_archive" /dev/urandom >"$work/guest/old-archive"
echo 'the first line' >"$work/guest/notes.txt"
guest_halts
cat >"$repository/VirtualMachines/$vm/vm.cfg" <<END
OVM_simple_name = 'web-1'
name = '$vm'
uuid = '${vm:0:8}-${vm:8:4}-${vm:12:4}-${vm:16:4}-${vm:20}'
disk = ['file:$disk,xvda,w']
memory = '2048'
vcpus = 2
END
step "A virtual machine, web-1: a disk of $(bytes $disk_size), ext4, $(wc -l <"$work/guest.sha256") files of $(
    bytes $((12 * guest_file + guest_archive))) in all"

authority
certificate service
certificate manager
start manager "$here/manager.py" --port 0 --cert "$work/manager.pem" --key "$work/manager.key" \
    --user "$user" --password "$password" --port-file "$work/manager.port"
wait_for manager test -s "$work/manager.port"
port=$(free_port)
api=https://127.0.0.1:$port/api/v1
cat >"$work/config.toml" <<END
db_file = "$work/exporter.db"
ovm_endpoint = "https://127.0.0.1:$(<"$work/manager.port")"
[jwt]
secret = "$(random_hex 32)"
[api]
bind = "127.0.0.1"
port = $port
socket = "$work/api.sock"
[api.tls]
certificate = "$work/service.pem"
key = "$work/service.key"
[manager]
ca_certificate = "$work/ca.pem"
[repositories]
paths = ["$repository"]
END
start service "$binary" --config "$work/config.toml"
wait_for service curl -s --fail -o "$work/ready.json" --max-time 5 --cacert "$work/ca.pem" "${api%/api/v1}/readyz"
step "The service is ready; a stand-in manager accepts the user $user"
note "API=$api"
note "VM=$vm DISK=$disk_name"

step 'Log in, list the VMs, take a snapshot, read a part of it, with any HTTP client'
jq -n --arg username "$user" --arg password "$password" '$ARGS.named' >"$work/login.json"
token=$(ask -d "@$work/login.json" "$api/auth/login" | jq -er .token)
note "a token: ${token:0:12}..."
vms=$(ask "$api/vms")
jq -e 'length == 1 and .[0].snapshot_compatible' <<<"$vms" >/dev/null || die "unexpected VM: $vms"
note "$(jq -r '.[0] | "\(.friendly_name): \(.disks | map(.device_name) | join(" ")), can be snapshotted"' <<<"$vms")"
first_snapshot=$(ask -X POST "$api/vms/$vm/snapshots")
snapshot=$(jq -er .id <<<"$first_snapshot")
note "SNAPSHOT=$snapshot"
magic=$(ask -r 1080-1081 "$api/vms/$vm/snapshots/$snapshot/disks/$disk_name" | od -An -tx1)
[[ $magic == ' 53 ef' ]] || die "bytes 1080 and 1081 of an ext4 file system are 53 ef, not$magic"
note "bytes$magic: an ext4 file system"

step 'A full backup, and a restore'
backup
full=("$(summary transferred_bytes)" "$(seconds)")

guest_boots
head -c 4096 /dev/urandom | dd of="$work/guest/document-03" bs=4096 seek=700 conv=notrunc status=none
head -c "$guest_file" /dev/urandom >"$work/guest/document-13"
echo 'a second line' >>"$work/guest/notes.txt"
sync -f "$work/guest/notes.txt"
rm "$work/guest/old-archive"
sync -f "$work/guest/notes.txt"
fstrim "$work/guest"
guest_halts
step "The guest writes $(bytes "$guest_file"), changes two files, deletes $(bytes "$guest_archive") and trims its disk"

step 'An incremental backup with the same command, and a restore'
backup
[[ $(summary is_full) == false ]] || die "expected an incremental backup: $(<"$work/summary.json")"
zeros=$("$binary" points "$work/backup/points" --json | jq '.points[-1].disks[0].zero_bytes')
incremental=("$(summary transferred_bytes)" "$zeros" "$(seconds)")
client points "$work/backup/points"
client verify "$work/backup/points" --progress none
client verify "$work/backup/points" --against "${api%/api/v1}" --progress none

mkdir "$work/restored"
e2fsck -fn "$work/backup/restored/$disk_name" >"$work/e2fsck.log" 2>&1 || die "e2fsck: $(<"$work/e2fsck.log")"
mount_image "$work/backup/restored/$disk_name" "$work/restored" ro
(cd "$work/restored" && sha256sum --quiet --check "$work/guest.sha256") || die 'the restored files differ from the guest'\''s'
[[ ! -e $work/restored/old-archive ]] || die 'a file that the guest deleted is in the copy'
dismount "$work/restored" || die 'the restored copy is still in use'
step "The restored disk, mounted: e2fsck finds no errors, all $(wc -l <"$work/guest.sha256") files equal the guest's"

if [[ -z ${KEEP:-} ]]; then
    step 'Delete one snapshot, then all others'
    ask -X DELETE "$api/vms/$vm/snapshots/$snapshot"
    ask -X DELETE "$api/vms/$vm/snapshots"
    [[ $(ask "$api/vms/$vm/snapshots") == '[]' ]] || die 'some snapshots remain'
    [[ -z $(find "$repository" -path '*/CoriolisSnapshots/*' -name '*.img') ]] || die 'some snapshot files remain'
fi

row() { printf '    %-14s%12s%12s%10s\n' "$@"; }
echo
row '' data zeros seconds
row 'the disk' "$(bytes "$disk_size")" '' ''
row full "$(bytes "${full[0]}")" '' "${full[1]}"
row incremental "$(bytes "${incremental[0]}")" "$(bytes "${incremental[1]}")" "${incremental[2]}"
printf '\ndemo: OK (%d s)\n' "$SECONDS"
[[ -z ${KEEP:-} ]] || hand_over
