#!/usr/bin/env bash
# A SLURM of one node on this machine for the tests: its own configuration, ports, keys and state, beside any real one.
#
#   cluster.sh up              start what is not running
#   cluster.sh down            stop everything
#   cluster.sh start|stop|kill slurmctld|slurmd|munged
#   cluster.sh forget          remove what slurmctld, which must be stopped, knows of jobs
#
# Needs root, and Debian's slurmctld, slurmd, slurm-client, slurm-wlm-basic-plugins and munge. COHORTGMM_SLURM is the
# folder of the cluster (/tmp/cohortgmm-slurm). Jobs look for /etc/slurm/slurm.conf (Snakemake's plugin drops SLURM_CONF),
# which becomes a link to the cluster's; where there is one already, this script refuses. No systemd.
set -euo pipefail

home=${COHORTGMM_SLURM:-/tmp/cohortgmm-slurm}
conf=$home/slurm.conf
system=/etc/slurm/slurm.conf
export PATH=$PATH:/usr/sbin
declare -A port=([slurmctld]=26817 [slurmd]=26818)

write_configuration() {
    rm -rf "$home"/{state,spool} # of an earlier cluster: its jobs, a node that it had drained
    mkdir -p "$home"/{munge,state,spool,log}
    chmod 700 "$home/munge"
    [[ -s $home/munge/key ]] || (umask 077 && head -c 1024 /dev/urandom >"$home/munge/key")
    local memory tracking
    memory=$(($(awk '/MemTotal/ {print $2}' /proc/meminfo) / 1024 * 9 / 10))
    if [[ -d /sys/fs/cgroup/memory ]]; then # version 1 of cgroups: jobs end in OUT_OF_MEMORY as on a real cluster
        tracking=$'ProctrackType=proctrack/cgroup\nTaskPlugin=task/cgroup\nJobAcctGatherType=jobacct_gather/cgroup'
        printf '%s\n' CgroupPlugin=cgroup/v1 CgroupAutomount=no CgroupMountpoint=/sys/fs/cgroup \
            ConstrainRAMSpace=yes ConstrainSwapSpace=yes >"$home/cgroup.conf"
    else # slurmd looks at the memory now and then and kills: jobs end in FAILED
        tracking=$'ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\nJobAcctGatherType=jobacct_gather/linux'
        tracking+=$'\nJobAcctGatherParams=OverMemoryKill'
    fi
    # More CPUs than there are: the tests wait more than they compute.
    cat >"$conf" <<CONF
ClusterName=cohortgmm
SlurmctldHost=$(hostname -s)(localhost)
SlurmctldPort=${port[slurmctld]}
SlurmdPort=${port[slurmd]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$home/munge/socket
CryptoType=crypto/munge
MpiDefault=none
ReturnToService=2
SwitchType=switch/none
$tracking
JobAcctGatherFrequency=task=1
AccountingStorageType=accounting_storage/none
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmctldPidFile=$home/slurmctld.pid
SlurmdPidFile=$home/slurmd.pid
SlurmctldLogFile=$home/log/slurmctld.log
SlurmdLogFile=$home/log/slurmd.log
StateSaveLocation=$home/state
SlurmdSpoolDir=$home/spool
SlurmdParameters=config_overrides
KillWait=2
UnkillableStepTimeout=600
MinJobAge=3600
MaxJobCount=20000
MaxArraySize=10001
DefMemPerCPU=500
NodeName=node NodeHostname=$(hostname -s) NodeAddr=localhost CPUs=8 RealMemory=$memory State=UNKNOWN
PreemptType=preempt/partition_prio
PreemptMode=CANCEL
PartitionName=short Nodes=ALL Default=YES MaxTime=24:00:00 State=UP PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=1:00:00 State=UP PriorityTier=2 PreemptMode=OFF
CONF
}

pid_of() { cat "$home/$1.pid" 2>/dev/null || echo 0; }
is_running() { [[ $(ps -o stat= -p "$(pid_of "$1")" 2>/dev/null) == [^Z]* ]]; } # a zombie is not
listens() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

await() { # SECONDS COMMAND...
    local tries=$(($1 * 10))
    shift
    for ((i = 0; i < tries; i++)); do
        "$@" && return
        sleep 0.1
    done
    echo "cluster.sh: not within $((tries / 10)) s: $*" >&2
    tail -n 20 "$home"/log/*.log >&2 || true
    return 1
}

start() {
    is_running "$1" && return
    case $1 in
    munged)
        munged --key-file="$home/munge/key" --socket="$home/munge/socket" --pid-file="$home/munged.pid" \
            --log-file="$home/log/munged.log" --seed-file="$home/munge/seed" --force 2>/dev/null
        ;;
    slurmctld) slurmctld && await 20 listens "${port[slurmctld]}" ;;
    slurmd) slurmd -N node && await 20 listens "${port[slurmd]}" ;;
    esac
}

stop() { # PROGRAM [SIGNAL]
    is_running "$1" || return 0
    kill "-${2:-TERM}" "$(pid_of "$1")"
    await 30 gone "$1"
}
gone() { ! is_running "$1"; }

node_is_up() { [[ $(sinfo --noheader --format=%t 2>/dev/null) =~ ^(idle|mix|alloc)$ ]]; }

case ${1:-} in
up)
    is_running slurmctld || write_configuration
    if [[ $(readlink "$system") != "$conf" ]]; then
        [[ ! -e $system ]] || { echo "cluster.sh: $system is there: this machine has a SLURM of its own" >&2 && exit 1; }
        mkdir -p "$(dirname "$system")"
        ln -sf "$conf" "$system"
        [[ ! -f $home/cgroup.conf ]] || ln -sf "$home/cgroup.conf" "$(dirname "$system")/cgroup.conf"
    fi
    for program in munged slurmctld slurmd; do start "$program"; done
    await 30 node_is_up
    ;;
down)
    for program in slurmd slurmctld munged; do stop "$program"; done
    [[ $(readlink "$system") != "$conf" ]] || rm -f "$system" "$(dirname "$system")/cgroup.conf"
    ;;
start) start "$2" ;;
stop) stop "$2" ;;
kill) stop "$2" KILL ;;
forget) rm -rf "$home"/state/* ;;
*)
    sed -n '2,11p' "$0" >&2
    exit 2
    ;;
esac
