#!/usr/bin/env bash
# A Slurm cluster of this one machine, for the test: `cluster.sh up`, `cluster.sh down`. Root, Debian's slurm-wlm and munge.
# Listens on loopback only; all its files are in one folder, but for slurm.conf and gres.conf, which must lie in /etc/slurm.
set -euo pipefail
HOME_OF_IT=/tmp/acl-slurm
MARK="# made by tests/slurm/cluster.sh"

down() {
  for name in slurmd slurmctld munged; do
    if [ -f "$HOME_OF_IT/$name.pid" ]; then kill "$(cat "$HOME_OF_IT/$name.pid")" 2>/dev/null || true; fi
  done
  for name in slurm.conf gres.conf; do
    if [ -f /etc/slurm/$name ] && head -1 /etc/slurm/$name | grep -qF "$MARK"; then rm /etc/slurm/$name; fi
  done
  sleep 1
  rm -rf "$HOME_OF_IT"
}

up() {
  for tool in munged slurmctld slurmd sbatch; do
    command -v $tool >/dev/null || { echo "$tool is missing: apt-get install -y --no-install-recommends slurm-wlm munge" >&2; exit 1; }
  done
  [ "$(id -u)" = 0 ] || { echo "slurmd needs root" >&2; exit 1; }
  if [ -f /etc/slurm/slurm.conf ] && ! head -1 /etc/slurm/slurm.conf | grep -qF "$MARK"; then
    echo "/etc/slurm/slurm.conf is there already: this machine belongs to a cluster, and this script leaves it alone" >&2; exit 1
  fi
  down
  mkdir -p "$HOME_OF_IT"/{state,spool,log} /etc/slurm
  chmod 755 "$HOME_OF_IT"
  touch "$HOME_OF_IT"/gpu0 "$HOME_OF_IT"/gpu1  # stand for two GPUs: Slurm only counts them
  (umask 077; head -c 128 /dev/urandom > "$HOME_OF_IT/munge.key")
  munged --key-file="$HOME_OF_IT/munge.key" --socket="$HOME_OF_IT/munge.socket" --pid-file="$HOME_OF_IT/munged.pid" \
    --log-file="$HOME_OF_IT/log/munged" --seed-file="$HOME_OF_IT/munged.seed" --force 2>/dev/null
  host=$(hostname -s)
  memory=$(($(awk '/MemTotal/ {print $2}' /proc/meminfo) / 1024 - 500))
  cat > /etc/slurm/gres.conf <<CONF
$MARK
NodeName=$host Name=gpu File=$HOME_OF_IT/gpu[0-1]
NodeName=$host Name=shard Count=8
CONF
  cat > /etc/slurm/slurm.conf <<CONF
$MARK
ClusterName=acl
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=36817
SlurmdPort=36818
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$HOME_OF_IT/munge.socket
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation=$HOME_OF_IT/state
SlurmdSpoolDir=$HOME_OF_IT/spool
SlurmctldPidFile=$HOME_OF_IT/slurmctld.pid
SlurmdPidFile=$HOME_OF_IT/slurmd.pid
SlurmctldLogFile=$HOME_OF_IT/log/slurmctld
SlurmdLogFile=$HOME_OF_IT/log/slurmd
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
MinJobAge=600
ReturnToService=2
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0
GresTypes=gpu,shard
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(getconf _NPROCESSORS_ONLN) RealMemory=$memory Gres=gpu:2,shard:8 State=UNKNOWN
PartitionName=gpu Nodes=$host Default=YES State=UP MaxTime=INFINITE
CONF
  slurmctld
  slurmd
  for _ in $(seq 60); do
    if sinfo -h -o %t 2>/dev/null | grep -qx idle; then return; fi
    sleep 0.5
  done
  tail -5 "$HOME_OF_IT"/log/* >&2
  exit 1
}

case "${1:-}" in
  up) up ;;
  down) down ;;
  *) echo "usage: $0 up|down" >&2; exit 2 ;;
esac
